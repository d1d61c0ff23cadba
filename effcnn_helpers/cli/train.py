"""Train a network of a budget on images of your own, and keep it."""

from pathlib import Path

from ..models import count_parameters, model_of
from ..own import (
    accuracy_in_words,
    own_dataset,
    recipe_in_words,
    recipe_within,
    refuse_existing,
    run_within,
    save_trained,
    train_within,
)
from ..techniques import labels_of


def train(source: str, budget: str, better: bool, epochs: int | None, seed: int, out: Path | None) -> int:
    """Read and check the images, train, say how good it is and where it is."""
    followed = run_within(budget, better)
    model = model_of(followed.model)
    if out:
        refuse_existing(out)  # before anybody waits for a training that cannot be kept
    checked = own_dataset(source, model.image_shape, seed=seed)
    out = out or Path("trained") / f"{checked.dataset.name}-{budget}"
    refuse_existing(out)
    print(checked, flush=True)
    images = len(checked.dataset.train)
    recipe = recipe_within(budget, images, epochs, better)
    parameters = count_parameters(model.build(len(checked.dataset.classes)))
    extra = f" with {labels_of(followed.techniques)}" if followed.techniques else ""
    print(f"training {model.label}{extra} ({parameters:,} parameters): {recipe_in_words(recipe, images)}", flush=True)
    trained = train_within(budget, checked.dataset, epochs, seed, better)
    print(accuracy_in_words(trained.record))
    print(f"kept in {save_trained(out, trained.record, trained.network, trained.spec)}; try it: "
          f"python -m effcnn_helpers predict {out} IMAGE")
    return 0
