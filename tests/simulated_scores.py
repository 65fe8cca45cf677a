"""A simulated table of scores with every optional column."""

import numpy as np

FAMILIES = {
    "mobile": "cnn",
    "res": "cnn",
    "dense": "cnn",
    "vgg": "cnn",
    "vit": "vit",
    "swin": "vit",
}
"""Group by family; each family has two checkpoints."""


def make_text(num_tasks: int = 6) -> str:
    """Return a wide table of 12 checkpoints, two fine-tuning runs and three measures.

    The measure `nleep` follows the quality of a checkpoint on a task closely, `leep`
    less so, and `random` not at all.
    """
    random = np.random.default_rng(0)
    names = [f"{family}{i}" for family in FAMILIES for i in range(2)]
    quality = random.normal(size=12)
    sizes = random.integers(1, 300, 12)
    source = 0.7 + 0.05 * (quality + 0.5 * random.normal(size=12))
    lines = [
        "task,checkpoint,family,group,seed,accuracy,test_images,parameters,feature_dim,"
        "source_accuracy,nleep,nleep_spread,nleep_seconds,leep,leep_seconds,random"
    ]
    for task in range(num_tasks):
        on_task = quality + 0.6 * random.normal(size=12)
        scores = {
            name: on_task + noise * random.normal(size=12)
            for name, noise in (("nleep", 0.5), ("leep", 1.2), ("random", 50.0))
        }
        for i, name in enumerate(names):
            family = name[:-1]
            for seed in range(2):
                z = 1 + 0.8 * on_task[i] + 0.2 * random.normal()
                lines.append(
                    f"task{task},{name},{family},{FAMILIES[family]},{seed},"
                    f"{1 / (1 + np.exp(-z)):.4f},500,{sizes[i]}e6,{256 + 64 * i},"
                    f"{source[i]:.4f},{scores['nleep'][i]:.4f},0.02,12,"
                    f"{scores['leep'][i]:.4f},0.01,{scores['random'][i]:.4f}"
                )
    return "\n".join(lines) + "\n"
