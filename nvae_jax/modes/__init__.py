"""What can be done with a trained model: a file per mode of the command line, named after it.

A mode is a function of an opened run (`nvae_jax.evaluation.trained.open_run`) and of its options, a
frozen dataclass. It writes below `<mode>/` in the run's folder.
"""
