from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="nl_detectron",
    version="0.1.0",
    description="Non-local Neural Networks for detection, segmentation and keypoints in Detectron2",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    # nl_detectron/configs and nl_detectron/tools are links to the folders of these names here, so
    # that a wheel has both: configs by name, and `python -m nl_detectron.tools.train_net`.
    packages=[*find_packages(include=["nl_detectron", "nl_detectron.*"]), "nl_detectron.tools"],
    package_data={"nl_detectron": ["configs/**/*.yaml", "configs/**/*.py"]},
    # Detectron2 itself is not on PyPI; README.md has the ways to install it. What stands here is
    # what Detectron2 needs at run time, and torchvision where torch is.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "numpy>=1.23",
        "opencv-python>=4.6",
        "pycocotools>=2.0.6",
        "fvcore>=0.1.5.post20221221",
        "iopath>=0.1.7,<0.1.10",
        "yacs>=0.1.8",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "cloudpickle",
        "termcolor>=1.1",
        "tabulate",
        "tqdm>4.29.0",
        "tensorboard",
        "matplotlib>=3.6",
        "Pillow>=7.1",
        "packaging",
        "safetensors>=0.4.2",
        "black",
        "setuptools<81",
    ],
    extras_require={
        "app": ["gradio>=6"],  # tools/app.py
        "fast": ["hotcoco>=1.3,<2"],  # COCO evaluation
        "track": ["scipy"],  # tools/predict.py --track: Detectron2's trackers import it
        "dev": ["pytest>=8", "ruff>=0.15", "hotcoco", "playwright", "scipy", "supervision"],
    },
)
