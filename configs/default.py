"""Every field of a configuration, with its meaning. The other files start from this one.

A field is set from the command line as `--config.training.seed=1`. A placeholder is None until it
is set.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """A CIFAR-like model on crops of photographs; not tuned for anything."""
    config = ConfigDict()

    # The network and its likelihood.
    config.model = model = ConfigDict()
    model.image_shape = (32, 32, 3)  # height, width, channels as the model sees them
    model.likelihood = "logistic_mixture"  # or bernoulli (binary data), normal (a density)
    model.num_bits = 8  # bits per colour channel that are kept and modelled
    model.num_mixtures = 10  # components of the logistic mixture
    model.bins = "exact"  # or official: bins that sum to more than 1 at 8 bits
    model.border = 0  # padding on each side that is not scored

    model.num_scales = 1  # scales of latents, each half as large as the one before
    model.num_groups = 1  # groups of latents at the finest scale
    model.adaptive_groups = False  # halve the groups with every coarser scale
    model.min_groups = 1  # ... but not below this
    model.num_latents = 20  # latent channels of a group

    model.architecture = "res_mbconv"  # the paper's; see nvae_jax/model/architecture.py
    model.encoder_channels = 32  # at full resolution; doubled with every halving
    model.decoder_channels = 32
    model.num_blocks = 1  # halvings before the finest scale
    model.preprocess_cells = 2  # residual cells in each of these blocks
    model.postprocess_cells = 2
    model.encoder_cells = 2  # residual cells in each group
    model.decoder_cells = 2
    model.squeeze_excite = True

    model.residual_posterior = True  # posterior relative to the prior
    model.num_flows = 0  # pairs of autoregressive cells in each group's posterior
    model.flow = "shift"  # or mixture_logistic

    model.dtype = "float32"  # or bfloat16, of activations; all else stays float32
    model.remat = "none"  # or cell, group, offload: what the backward pass computes again
    model.unroll = placeholder(bool)  # groups of a scale without a loop; None: on CPU only

    # The images; other fields are options of the dataset, see docs/data.md.
    config.data = ConfigDict()
    config.data.name = "photos"

    # How they are read; what is read does not depend on it.
    config.loading = loading = ConfigDict()
    loading.num_workers = 0  # processes that read; 0: threads of the training process
    loading.prefetch = 2  # batches kept ready (by each worker), and threads where reading is slow

    # The optimisation.
    config.training = training = ConfigDict()
    training.epochs = 100
    training.batch_size = 32  # over all devices
    training.accumulation_steps = 1  # parts of a batch, one after the other, to save memory
    training.parameter_shards = 1  # devices that share one copy of the parameters
    training.seed = 0

    training.learning_rate = 1e-2  # peak; linear warm-up, then a cosine
    training.min_learning_rate = 1e-4
    training.warmup_epochs = 5
    training.weight_decay = 3e-4
    training.gradient_clip = placeholder(float)  # or the largest global norm
    training.ema_decay = placeholder(float)  # or of averaged parameters, which evaluation then uses

    training.kl_warmup = 0.3  # part of training over which the KL's weight rises to 1
    training.kl_constant = 1e-4  # part of training before that
    training.kl_balance = "square"  # or sqrt, linear, equal: how groups are weighed until then

    training.regularization = 1e-2  # weight of the spectral and the batch-norm penalty
    training.initial_regularization = placeholder(float)  # or where a geometric path to it starts

    # What is written, and every how many steps.
    training.log_interval = 100
    training.eval_interval = 1000
    training.picture_interval = 1000
    training.checkpoint_interval = 1000
    training.keep_checkpoints = 2
    training.eval_batch_size = placeholder(int)  # None: batch_size

    return config
