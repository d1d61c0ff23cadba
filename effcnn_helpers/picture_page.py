"""A page that answers pictures: a network of your own in one HTML file that loads nothing and sends nothing.

It runs on any device with a browser. A picture becomes an image as `pictures` makes it, in JavaScript (fit.js), and the
network answers as on the page to draw on (`draw_page`). The page holds some test images with PyTorch's answers to them,
and compares its own when it is opened.
"""

import base64
import html

import numpy as np
import torch

from .batches import normalise
from .datasets import ImageDataset
from .draw_page import as_script, filled, label_of, numbers_of, read_part
from .own import Trained, accuracy_in_words

EXAMPLES = 24  # test images on the page, at most


def picture_page(trained: Trained, dataset: ImageDataset) -> str:
    """The page as HTML, with a trained network in it.

    Args:
        trained: the network, for images of 1 or 3 channels.
        dataset: the images that it was trained on; some of the test part are on the page.

    Raises:
        EffcnnError: the network has a layer that `lowering` does not know.
    """
    spec, record = trained.spec, trained.record
    examples = dataset.test.x[rows := rows_shown(dataset)]
    with torch.inference_mode():
        logits = trained.network(normalise(examples, spec))
    channels, height, width = spec.image_shape
    network = {
        **numbers_of(trained.network, spec), "classes": spec.classes, "maps": channels, "height": height,
        "width": width,
        "examples": [{
            "pixels": base64.b64encode(pixels.numpy().tobytes()).decode("ascii"),
            "label": spec.classes[label],
            "logits": [round(logit, 4) for logit in row],
        } for pixels, label, row in zip(examples, dataset.test.y[rows].tolist(), logits.tolist(), strict=True)],
    }
    return filled("picture.html", {
        "style": f"{read_part('draw.css')}\n\n{read_part('picture.css')}",
        "data": f"const NETWORK = {as_script(network)};",
        "script": "\n\n".join(read_part(name) for name in ("network.js", "show.js", "fit.js", "picture.js")),
        "title": f"{html.escape(spec.label)}: what is in a picture?",
        "classes": str(len(spec.classes)),
        "facts": html.escape(" · ".join([label_of(record.config), f"{record.parameters:,} parameters",
                                         accuracy_in_words(record)])),
        "size": f"{width} × {height}",
        "kind": "grey" if channels == 1 else "in colour",
        "weight_bytes": f"{network['bytes']:,}",
    })


def rows_shown(dataset: ImageDataset) -> list[int]:
    """The first test image of each class, then the second of each, and so on."""
    labels = dataset.test.y.numpy()
    turn = np.zeros(len(labels), int)  # which of its class an image is
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    order = np.lexsort((labels, turn))[:EXAMPLES]
    return order[np.lexsort((turn[order], labels[order]))].tolist()
