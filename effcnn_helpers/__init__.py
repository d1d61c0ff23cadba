"""Helpers behind the effcnn notebooks. In the order in which a newcomer may read them:

- `models`: the paper's eight networks, parameters and multiply-adds counted; `paper`: what it reports about them.
- `data`: MNIST and CIFAR-10 as tensors; `samples`: what stands in for them without a download.
- `techniques`: the eight techniques as Composer and torch have them; `recipes`: what a run is made of.
- `training`: a run through Composer's Trainer; `callbacks`: what it does on the way; `machine`: on what.
- `records`: recorded runs read back; `tables`: the paper's tables with verdicts; `plots`: one look for all.
- `latency`: variants timed in turn; `runtimes`: the same weights in other runtimes.
- `notebook`: how each notebook starts, checks answers, ends; `complete_install`: what its first cell runs on Colab.

`cli` holds the commands (`python -m effcnn_helpers`), the long work among them: training, recording and
re-measuring, the bench, the book. No notebook needs it.
"""
