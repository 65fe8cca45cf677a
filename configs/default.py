"""All fields of a configuration with their defaults; other configs change a few.

Set a field on the command line with `--config.FIELD=VALUE`, for example
`rankckpt IMAGES CHECKPOINTS --config.task.limit=1000`.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration with every field at its default."""
    config = ml_collections.ConfigDict()

    # Directory or bucket (gs://) of all results: workdir/TASK/CHECKPOINT/... Results
    # that match the config are loaded instead of computed.
    config.workdir = "runs"
    # Seed of the measures' random starts, and in fine-tuning of the order of images and
    # of the images that are held out.
    config.seed = 0
    # Stages to run, of: pretrain, extract, score, ablate, finetune, report.
    config.stages = "extract,score,report"
    # "i/n" with 1 <= i <= n: evaluate only every n-th checkpoint, starting with the
    # i-th. Start n jobs with the same work directory, one for each i. Every job reports
    # all rows that are stored; `--config.stages=report` without a shard does so at the
    # end.
    config.shard = ""
    # Trackers that record the ranking at the end of the stage `report`, separated by
    # commas: tensorboard, wandb, mlflow. See docs/tracking.md.
    config.track = ""
    # Several processes that run as one, with all their devices. Cloud TPU, GKE, Slurm
    # and a single host need no settings. Elsewhere set the first three on each process.
    config.distributed = distributed = ml_collections.ConfigDict()
    # HOST:PORT of process 0, reachable from all processes.
    distributed.coordinator = ""
    distributed.num_processes = placeholder(int)
    # Counted from 0.
    distributed.process_id = placeholder(int)
    # Time until a process that cannot reach the others exits with an error.
    distributed.timeout_seconds = 300

    # The images. The first of path, tfds and digits that is set is used.
    config.task = task = ml_collections.ConfigDict()
    # Name of the task in the store; by default that of the folder or data set.
    task.name = ""
    # A folder with train/CLASS/*.jpg, and optionally val/ and test/.
    task.path = ""
    # What the label of an image is: classes (one class), multi_label (several labels),
    # regression (a number), or auto to find it from the files, which the log states.
    # See docs/tasks.md.
    task.target = "auto"
    # A TFDS name with a version, such as caltech101:3.*.*.
    task.tfds = ""
    # Directory of TFDS data sets; empty for the default of TFDS.
    task.data_dir = ""
    # TFDS split expressions. Measures use `train`; accuracy is measured on `test`.
    task.train = "train"
    task.val = ""
    task.test = "test"
    # Digits of scikit-learn's handwritten digits, which need no download.
    task.digits = ()
    # Drawings of each of their training digits, at different positions and sizes.
    task.drawings = 1
    # Number of images per split, always the same ones; 0 for all.
    task.limit = 0
    # Largest share of a split's images that may be corrupt. Corrupt images are dropped
    # for all checkpoints and listed in the report. A larger share ends the run: a few
    # broken files are common and change little, but a tenth points to a bad copy.
    task.max_unreadable = 0.1

    # The pool: directories, globs, files or handles, separated by commas. Below a
    # directory every TF-Slim checkpoint, TF-Hub module, SavedModel and Keras file is
    # ranked. A handle is like https://tfhub.dev/vtab/sup-100/1, an archive like
    # https://host/pool.zip!/inat_res50/model.ckpt-300000, with a path inside it after
    # "!/". Networks by name: timm:resnet50.a1_in1k, timm:convnext_*, torchvision:NAME,
    # keras:NAME, hf-hub:ORG/NAME. @FILE is a text file with one checkpoint per line.
    # Options follow "#": signature, output, image_size, input_range, and for PyTorch
    # weights model, as in DIR#output=pre_logits&input_range=-1:1 or
    # FILE.pth#model=resnet50. docs/checkpoints.md has a table of all.
    config.checkpoints = ""
    # Rank these groups of NeuCRaB instead: group_i, group_ii, group_iii, separated by
    # commas. Their files are searched in `checkpoints`, then among the downloads, then
    # downloaded; see rankckpt_jax/benchmark/neucrab.py.
    config.neucrab = ""
    # Rank published pools of other benchmarks instead: sfda_group1, sfda_group2,
    # keras19, hf, separated by commas. Their networks are downloaded, except those of
    # sfda_group2, which are files in `checkpoints`. See docs/pools.md.
    config.pool = ""
    # If a NeuCRaB checkpoint is missing, rank the nearest step of the same training run
    # instead; its row has a warning.
    config.nearest_step = False
    # Features that were extracted elsewhere, instead of images and checkpoints: .npz
    # files, or `features/SPLIT` directories of a store, by directory or glob. See
    # configs/features.py.
    config.features = ""
    # Accuracies of checkpoints that have not been fine-tuned here: a CSV file with
    # lines NAME,ACCURACY, all fractions or all percentages, or `published` for VTAB's
    # accuracies of NeuCRaB's checkpoints, or those of a pool above.
    config.accuracies = ""
    # Architectures to rank from random initialization too, separated by commas, as a
    # control for pre-training, such as mobilenet_v1_050.
    config.from_scratch = ""
    # Side of the square images in pixels; 0 for each checkpoint's own: the number in
    # its folder's name (mobilenet_v1_0.25_128), or its architecture's default. A
    # network that takes only one size keeps it. A Keras file states one size, but takes
    # others if its layers do.
    config.image_size = 0
    # Use the moving averages of the weights (ExponentialMovingAverage in TF-Slim) of
    # checkpoints that have them.
    config.use_moving_averages = False

    # Downloads are kept and unpacked here.
    config.download = download = ml_collections.ConfigDict()
    # A local directory; by default RANKCKPT_DOWNLOADS or ~/.cache/rankckpt_jax.
    download.directory = ""
    # Cache of tensorflow_hub, whose modules are used too; by default TFHUB_CACHE_DIR.
    download.hub_cache = ""
    # Tried before a handle's own address: "https://host/{path}.tar.gz", where {path} is
    # the handle's path (vtab/sup-100/1), or the address of a folder with the file.
    download.mirrors = ()
    # Largest unpacked size of an archive.
    download.limit_gigabytes = 64.0

    # How images are resized: vtab (the benchmark's), own (as each network's library
    # evaluates it), slim_inception or slim_vgg (TF-Slim's evaluations). See
    # docs/tasks.md.
    config.preprocess = "vtab"
    # Dtype of the networks in extraction: float32, bfloat16, or auto for bfloat16 on a
    # TPU or GPU and float32 on a CPU. Features are always float32.
    config.dtype = "auto"
    # What computes PyTorch networks: jax; torch for PyTorch itself on the host, which
    # only extracts features; or auto for torch on a CPU without the stage `finetune`
    # and jax elsewhere. Their features agree to 1e-4.
    config.torch_engine = "auto"
    # Layers whose features are scored: last, the pooled features before the classifier;
    # blocks, the pooled outputs of the last three stages side by side; or last,blocks,
    # all of them apart, of which each measure takes the best. Known for TF-Slim's and
    # most PyTorch networks. See docs/checkpoints.md.
    config.features_from = "last"
    # Images per step and process in extraction. At most the number of images is used,
    # or 64.
    config.batch_size = 64
    # Directory of decoded images, which all checkpoints, stages and runs share: a local
    # one, by default RANKCKPT_IMAGES or ~/.cache/rankckpt_jax/images. An image takes
    # 3 bytes per pixel (0.15 MB at 224 pixels), and the log states the size before
    # anything is written. `off` decodes the images in each pass, as a full or
    # read-only disk does.
    config.image_cache = ""
    # Largest size of that directory in GB. The least recently used files are deleted to
    # stay below it. By default three quarters of the memory, because a larger file
    # would be read from the disk in each pass, which takes longer than decoding.
    config.image_cache_gigabytes = placeholder(float)

    # Directory or bucket of compiled programs, which later runs load in a tenth of the
    # time that compiling takes. By default JAX_COMPILATION_CACHE_DIR or
    # ~/.cache/rankckpt_jax/compiled, which keeps the 2 GB that were used last. `off`
    # compiles in each run. Its programs are run: use no directory that others can
    # write to.
    config.compilation_cache = ""
    # Directory or bucket of the history, where the results of each fine-tuning are
    # recorded, as CSV files with names, fingerprints, scores and accuracies; never
    # images or paths. By default RANKCKPT_HISTORY or ~/.cache/rankckpt_jax/history.
    # `off` records nothing. See docs/history.md.
    config.history = ""
    # Histories that others share, separated by commas: CSV files, directories or
    # buckets with CSV files, or http(s) addresses. They are read, never written.
    config.shared_histories = ""
    # Local directory for traces by jax.profiler, of one step each: a batch of
    # extraction, each measure, and a training step. Empty for none.
    config.profile = ""

    # Measures separated by commas, or all. The first one orders the ranking.
    config.measures = "nleep,leep,h_score"
    # Score every checkpoint on this many training images, the same for all: a random
    # draw from each class in proportion to its size, and at least five images of each.
    # Only these are extracted. The report states 95 % confidence intervals of the
    # scores of all images, from 8 random halves of the subset unless num_bootstrap sets
    # another number. 0 for all images.
    config.score_on = 0
    # Extract in growing parts (1/8, 1/4, 1/2 and all of the images), and after each one
    # drop the checkpoints that the first measure will not place among the best three on
    # all images, with 95 % confidence. See docs/reading-a-ranking.md.
    config.race = False
    # Random halves of the images that are scored too, for each score's standard
    # deviation. Each costs half as much as the score, or as much if the images are
    # fewer than the dimensions of the features. 0 for none.
    config.num_bootstrap = 0
    # Options by measure.
    config.measure_options = options = ml_collections.ConfigDict()
    options.nleep = ml_collections.ConfigDict()
    # Share of the variance that PCA keeps; 0.8 in the paper.
    options.nleep.energy = 0.8
    # Gaussian components per class; 5 in the paper.
    options.nleep.components_per_class = 5
    # paper, or the definition of other published code: stable_transfer, sfda, pactran,
    # spherical; see rankckpt_jax/measures/nleep.py.
    options.nleep.variant = "paper"
    # Independent random starts; one in the paper. The score is their mean, and the
    # report shows its standard deviation, which needs at least two.
    options.nleep.num_restarts = 3

    # Fine-tuning; see rankckpt_jax/finetune/recipes.py.
    config.finetune = finetune = ml_collections.ConfigDict()
    # vtab_1k (1000 steps), vtab_full (VTAB's grid), neucrab (the benchmark's grid), vit
    # (AdamW for transformers) or quick (AdamW, cosine schedule, three learning rates, a
    # few hundred steps, chosen on val).
    finetune.recipe = "vtab_1k"
    # Fine-tune only this many checkpoints, the best ranked ones by the first measure,
    # after all checkpoints are scored; 0 for all. Not possible with `shard`.
    finetune.top = 0
    # A time such as 90s, 30min or 2h: fine-tune one checkpoint after the other, each
    # time the one with the largest expected gain for its time, until the time is used.
    # Weak ones are left after their first part; see choose_after, which is 0.3 here.
    # Or a number of steps over all checkpoints, which replaces num_steps: successive
    # halving drops the worse half of the checkpoints again and again, until one is
    # left. Empty to fine-tune each checkpoint. See docs/classifier.md.
    finetune.budget = placeholder(object)
    # With a budget of time: stop earlier, as soon as the best checkpoint is among those
    # that were fine-tuned with this probability, in (0, 1]. By default 0.9.
    finetune.confidence = placeholder(float)
    # best: keep the weights of the checkpoint with the highest accuracy in
    # workdir/TASK/model, for `rankckpt predict`; see docs/classifier.md.
    finetune.keep = ""
    # Metric that chooses among hyperparameters and that rankings are compared with. For
    # classes: accuracy (the default), balanced_accuracy, auroc (macro-AUROC); for
    # several labels: mean_average_precision (the default), auroc; for numbers: r2 (the
    # default), spearman. All of them are measured.
    finetune.metric = ""
    # The following fields override the recipe. Learning rate and number of steps may be
    # several values, of which every pair is tried:
    # --config.finetune.learning_rate=0.1,0.01
    finetune.learning_rate = placeholder(object)
    finetune.num_steps = placeholder(object)
    # Global batch size, over all devices of all processes. Lowered to the largest power
    # of two that is not above the number of training images.
    finetune.batch_size = placeholder(int)
    # val or test: split whose accuracy chooses among hyperparameters.
    finetune.select_by = placeholder(str)
    # train or trainval: whether the chosen setting is trained on val too.
    finetune.train_on = placeholder(str)
    # Trials that share a device; faster for small networks.
    finetune.trials_at_once = placeholder(int)
    # Share of the steps after which only the best learning rate goes on, in (0, 1]; 1
    # to train all rates to the end.
    finetune.choose_after = placeholder(float)
    # sgd or adamw.
    finetune.optimizer = placeholder(str)
    finetune.momentum = placeholder(float)
    # piecewise, cosine or constant.
    finetune.schedule = placeholder(str)
    # Fractions of the steps at which a piecewise rate is multiplied by decay_factor.
    finetune.decay_at = placeholder(tuple)
    finetune.decay_factor = placeholder(float)
    # Fraction of the steps over which the learning rate rises to its full value.
    finetune.warmup = placeholder(float)
    finetune.weight_decay = placeholder(float)
    # Factor of the learning rate per block of a transformer, from the head down; 1 for
    # none.
    finetune.layer_decay = placeholder(float)
    finetune.label_smoothing = placeholder(float)
    # Largest norm of the gradient; 0 for no clipping, or for 1 in regression.
    finetune.clip_norm = placeholder(float)
    # Smallest share of an image that a random resized crop keeps; 0 for no cropping.
    finetune.random_crop = placeholder(float)
    finetune.random_flip = placeholder(bool)
    # float32 or bfloat16. Weights are float32 in both.
    finetune.dtype = placeholder(str)
    # Parts of a batch that a device processes one after the other.
    finetune.accumulate = placeholder(int)
    # Train only the head: a linear probe.
    finetune.frozen = placeholder(bool)
    # Momentum of batch norm's moving averages; 0 for the architecture's own. TF-Slim's
    # 0.9997 suits thousands of steps, not hundreds.
    finetune.batch_norm_decay = placeholder(float)
    # Number of evaluations during training.
    finetune.evaluations = placeholder(int)
    # Fraction of the steps after which the accuracy of early stopping is measured.
    finetune.early_stop = placeholder(float)
    # Steps between saves of the training state.
    finetune.save_every = placeholder(int)

    return config
