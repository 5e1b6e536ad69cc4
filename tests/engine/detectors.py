"""Trains, or evaluates, a whole detector whose losses over a batch are the means of its halves'.

    python detectors.py [--num-gpus N] [--eval-only] KIND ANNOTATIONS IMAGES [KEY VALUE ...]

All images have as many objects and proposals, and all of these are used: so nothing is drawn, and
two processes must end with the weights that one process ends with.
"""

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser, default_setup

from nl_detectron.engine import Trainer, launch, load_cfg
from tests.fixtures import QUICK

OPTIONS = {
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 32,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 32,
    "MODEL.FPN.NORM": "GN",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.NMS_THRESH": 0.95,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 64,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.999],  # the true boxes alone
    "MODEL.ROI_KEYPOINT_HEAD.NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": False,
    "DATALOADER.ASPECT_RATIO_GROUPING": False,
    "INPUT.RANDOM_FLIP": "none",
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.MAX_ITER": 2,
    "TEST.DETECTIONS_PER_IMAGE": 10,
    "TEST.EVAL_PERIOD": 0,
    "DATASETS.TRAIN": ("two_each",),
    "DATASETS.TEST": ("two_each",),
    "SEED": 3,
}


def main(args) -> None:
    kind, json_file, image_root, *opts = args.opts
    register_coco_instances("two_each", {}, json_file, image_root)
    if kind == "people":
        people = MetadataCatalog.get("people_val")
        MetadataCatalog.get("two_each").set(
            keypoint_names=people.keypoint_names, keypoint_flip_map=people.keypoint_flip_map
        )
    args.opts = [item for pair in OPTIONS.items() for item in pair] + opts
    args.config_file = str(QUICK[kind])
    cfg = load_cfg(args.config_file, args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        Trainer.evaluate(cfg, resume=False)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    machines = (arguments.num_machines, arguments.machine_rank)
    dist_url = arguments.dist_url if arguments.num_machines > 1 else "auto"
    launch(main, arguments.num_gpus, *machines, dist_url, args=(arguments,))
