"""Helpers behind the effcnn notebooks. In the order in which a newcomer may read them:

- `models`: the paper's eight networks, parameters and multiply-adds counted.
- `paper`: what the paper reports about them.
- `datasets`: MNIST, CIFAR-10, yours: where images come from; `downloads`, `samples`: two sources.
- `batches`: images as batches, normalised and augmented.
- `techniques`: the eight techniques as Composer and torch have them.
- `recipes`: how a run trains, and everything that decides its result.
- `training`: a run through Composer's Trainer; `callbacks`: what it does on the way; `batchnorm`: a
  faster BatchNorm for uneven widths; `machine`: what it runs on.
- `records`: what a run left, written and read back.
- `own`: images of your own, trained on within a budget; `sources`, `findings`, `pictures`: how they
  are found, checked, converted.
- `statistics`: spreads, verdicts, gains; `tables`: the paper's tables with ours; `scorecard`: its claims, one by one;
  `ladder`: from there to a much better network of the same size; `plots`: one look.
- `latency`: variants timed in turn; `runtimes`: the same weights in other runtimes; `lowering`: a
  network as a few plain steps; `plain_c`: the same weights as C without dependencies; `export`: a
  trained run as files for any of them; `footprint`: what it takes there in bytes, memory and time.
- `draw_page`: a page to draw digits on, which the same weights answer in the browser; `picture_page`:
  one for your own network, which takes pictures.
- `notebook`: how each notebook starts, checks answers, ends; `touch`: what a learner moves in it, and
  guesses.
- `settings`: what the environment says; `errors`: the one error for what a user can mend;
  `complete_install`: what the first cell runs on Colab.

`cli` holds the commands (`python -m effcnn_helpers`), the long work among them: training, recording
and re-measuring, the bench. `maintain` holds what only maintainers run. No notebook needs either.
"""

import os

# OpenMP's threads spin while they wait for each other, and take the cores from whatever else runs:
# beside one busy process on two cores a training step took 276 to 586 ms, and 84 to 94 with threads
# that sleep. OpenMP reads this when torch loads it, so it comes before any import of torch; your
# own setting stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
