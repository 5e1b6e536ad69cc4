"""Trains a proposal network whose loss over a batch is the mean of those over its halves.

    python proposals.py [--num-gpus N] ANNOTATIONS IMAGES [KEY VALUE ...]

So two processes must end with the weights that one process ends with.
"""

from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser, default_setup

from nl_detectron.engine import Trainer, launch, load_cfg

OPTIONS = {
    "MODEL.META_ARCHITECTURE": "ProposalNetwork",
    "MODEL.BACKBONE.NAME": "build_non_local_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[24], [48], [96]],
    "MODEL.NON_LOCAL.AFTER": ["res3.1", "res4.-2"],
    "INPUT.MIN_SIZE_TRAIN": (128,),
    "INPUT.RANDOM_FLIP": "none",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.2,  # the losses are divided by the number of anchors to be sampled
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_ITER": 3,
    "DATASETS.TRAIN": ("proposals",),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "SEED": 3,
}


def main(args) -> None:
    register_coco_instances("proposals", {}, *args.opts[:2])
    args.opts = [item for pair in OPTIONS.items() for item in pair] + args.opts[2:]
    cfg = load_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(main, arguments.num_gpus, dist_url=arguments.dist_url, args=(arguments,))
