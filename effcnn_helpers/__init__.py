"""Helpers behind the effcnn notebooks: models, data, training through Composer, recorded runs, plots."""
