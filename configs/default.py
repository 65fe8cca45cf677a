"""Every field of a configuration, once; the other files here are deltas on this one.

A field is set on the command line with `--config.FIELD=VALUE`, as in
`python -m rankckpt_jax.main --config=configs/folder.py --config.task.path=DIR`.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Returns the configuration with every field at its default."""
    config = ml_collections.ConfigDict()

    # Where results go: workdir/TASK/CHECKPOINT/...; a local directory or gs://.
    # What stands there already and still fits is used, not computed again.
    config.workdir = "runs"
    # Decides the random starts of measures and the order of images in fine-tuning.
    config.seed = 0
    # Run several jobs on one workdir, each of which takes the checkpoints that no other
    # works on.
    config.shard_checkpoints = False
    # Several processes that run as one, with all their devices. On Cloud TPU, GKE,
    # Slurm and one host nothing is to be set; elsewhere all three, on each process.
    config.distributed = distributed = ml_collections.ConfigDict()
    # HOST:PORT of process 0, reachable from all.
    distributed.coordinator = ""
    distributed.num_processes = placeholder(int)
    # From 0.
    distributed.process_id = placeholder(int)
    # A process that has not met the others by then ends with a message.
    distributed.timeout_seconds = 300
    # What to do, of: pretrain, extract, score, ablate, finetune, report.
    config.stages = "extract,score,report"

    # The images. The first of path, tfds and digits that is set is taken.
    config.task = task = ml_collections.ConfigDict()
    # Name of the task in the store; by default the folder's or the data set's.
    task.name = ""
    # A folder: train/CLASS/*.jpg and, if there are any, val/ and test/.
    task.path = ""
    # A TFDS name with a version, such as caltech101:3.*.*.
    task.tfds = ""
    # Where TFDS keeps its data sets; empty for its own default.
    task.data_dir = ""
    # TFDS split expressions. The measures see `train`, accuracies come from `test`.
    task.train = "train"
    task.val = ""
    task.test = "test"
    # Classes of scikit-learn's handwritten digits, which need no download.
    task.digits = ()
    # Take only so many images of each split, always the same; 0 for all.
    task.limit = 0
    # Largest share of a split's images that may be unreadable. They are left out, for
    # all checkpoints alike, and the report names them; with more the run ends. A few
    # broken files are common and change little; a tenth points to a bad copy.
    task.max_unreadable = 0.1

    # The pool: a directory or a glob; every checkpoint below it is ranked, be it of
    # TF-Slim, a TF-Hub module, a SavedModel or a Keras file. Also a TF-Hub handle
    # (https://tfhub.dev/vtab/sup-100/1) or the address of an archive, with a path in it
    # after "!/" (https://host/pool.zip!/inat_res50/model.ckpt-300000). Of a module the
    # signature, output, image_size or input_range may be named after "#":
    # DIR#output=pre_logits&input_range=-1:1. Several may be given, separated by commas.
    config.checkpoints = ""
    # Groups of NeuCRaB to rank instead: group_i, group_ii, group_iii, separated by
    # commas. They are looked for in the directories of `checkpoints`, then among the
    # downloads, then fetched; see rankckpt_jax/benchmark/neucrab.py.
    config.neucrab = ""
    # Where a run of NeuCRaB lacks the step that is asked for, rank its nearest step in
    # place of it; the row says so.
    config.nearest_step = False
    # Features made elsewhere, in place of images and checkpoints: .npz files, or
    # `features/SPLIT` directories of a store, by directory or glob. See
    # configs/features.py.
    config.features = ""
    # Accuracies where a checkpoint has not been fine-tuned here: a CSV file of lines
    # NAME,ACCURACY, or `published` for those of NeuCRaB's checkpoints that VTAB has
    # published.
    config.accuracies = ""
    # Architectures to rank from a random initialization too, separated by commas: a
    # control that shows what pre-training is worth, such as mobilenet_v1_050.
    config.from_scratch = ""
    # Side of the square images in pixels; 0 for each checkpoint's own: the one in its
    # folder's name (mobilenet_v1_0.25_128), else its architecture's default.
    config.image_size = 0

    # Take the moving averages of the weights that some trainings kept beside them
    # (ExponentialMovingAverage in TF-Slim) instead of the weights.
    config.use_moving_averages = False

    # What has to be downloaded is kept, and unpacked, here.
    config.download = download = ml_collections.ConfigDict()
    # A local directory; by default RANKCKPT_DOWNLOADS or ~/.cache/rankckpt_jax.
    download.directory = ""
    # tensorflow_hub's cache, whose modules are used too; by default TFHUB_CACHE_DIR.
    download.hub_cache = ""
    # Tried before a handle's own address: "https://host/{path}.tar.gz", in which {path}
    # is that of the handle (vtab/sup-100/1), or the address of a folder with the file.
    download.mirrors = ()
    # What an archive may unpack to.
    download.limit_gigabytes = 64.0

    # How images are brought to that size: vtab (the benchmark's), slim_inception or
    # slim_vgg (TF-Slim's own evaluation).
    config.preprocess = "vtab"
    # What the networks compute in when features are extracted: float32, bfloat16, or
    # auto: bfloat16 on a TPU or GPU, float32 on a CPU. Features are float32 in any.
    config.dtype = "auto"
    # Images a step, per process, in extraction.
    config.batch_size = 64
    # Memory for decoded images that several checkpoints share, in GB, per process.
    config.image_cache_gigabytes = 4.0

    # The measures, separated by commas, or all. The first one orders the ranking.
    config.measures = "nleep,leep,h_score"
    # Resamples of the images over which the spread of each score is taken; each costs
    # as much as the score. 0 for none.
    config.num_bootstrap = 0
    # Options of single measures, by the measure's name.
    config.measure_options = options = ml_collections.ConfigDict()
    options.nleep = ml_collections.ConfigDict()
    # Share of the variance that PCA keeps; the paper's.
    options.nleep.energy = 0.8
    # Gaussian components per class; the paper's.
    options.nleep.components_per_class = 5
    # paper, or the definition of other published code: stable_transfer, sfda, pactran,
    # spherical; see rankckpt_jax/measures/nleep.py.
    options.nleep.variant = "paper"
    # Independent random starts; the score is their mean, and their spread is shown.
    options.nleep.num_restarts = 1

    # Fine-tuning; see rankckpt_jax/finetune/recipes.py, which explains every field.
    config.finetune = finetune = ml_collections.ConfigDict()
    # vtab_1k (1000 steps), vtab_full (VTAB's grid), neucrab (the benchmark's grid) or
    # quick (cosine, two rates, a few hundred steps, chosen on val).
    finetune.recipe = "vtab_1k"
    # What follows overrules the recipe where it is set. One value or several, of which
    # every pair is tried: --config.finetune.learning_rate=0.1,0.01
    finetune.learning_rate = placeholder(object)
    finetune.num_steps = placeholder(object)
    # Global batch, over all devices of all processes.
    finetune.batch_size = placeholder(int)
    # val or test: which accuracy chooses among several settings.
    finetune.select_by = placeholder(str)
    # train or trainval: whether val is trained on too, once the setting is chosen.
    finetune.train_on = placeholder(str)
    # Settings that are tried at the same time; faster for small networks.
    finetune.cells_at_once = placeholder(int)
    finetune.momentum = placeholder(float)
    # piecewise, cosine or constant.
    finetune.schedule = placeholder(str)
    # Shares of the steps at which a piecewise rate is multiplied by decay_factor.
    finetune.decay_at = placeholder(tuple)
    finetune.decay_factor = placeholder(float)
    # Share of the steps over which the rate rises to its full value.
    finetune.warmup = placeholder(float)
    finetune.weight_decay = placeholder(float)
    finetune.label_smoothing = placeholder(float)
    # Largest norm of the gradient; 0 for any.
    finetune.clip_norm = placeholder(float)
    # Smallest share of an image that a random resized crop keeps; 0 for no cropping.
    finetune.random_crop = placeholder(float)
    finetune.random_flip = placeholder(bool)
    # float32 or bfloat16, in which weights stay float32.
    finetune.dtype = placeholder(str)
    # Parts of a batch that go through a device one after the other.
    finetune.accumulate = placeholder(int)
    # Train the head alone: a linear probe.
    finetune.frozen = placeholder(bool)
    # Decay of batch norm's moving averages; 0 for the architecture's own, which for
    # TF-Slim's is 0.9997: right for thousands of steps, not for hundreds.
    finetune.batch_norm_decay = placeholder(float)
    # How often accuracy is measured on the way.
    finetune.evaluations = placeholder(int)
    # Share of the steps after which the accuracy of early stopping is taken.
    finetune.early_stop = placeholder(float)
    # Steps between saves of the training state.
    finetune.save_every = placeholder(int)

    return config
