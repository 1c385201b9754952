"""Fine-tune a timm model with exits on a folder of photos, one subfolder per class.

    python examples/finetune_timm.py --net timm:mobilenetv3_small_100 --data folder:photos --out runs/photos

Training starts from the pretrained weights of timm (`--pretrained`: it downloads them, unless they are in its cache or
in an installed package), from a file (`--weights`), or from random weights.
"""

import argparse
from pathlib import Path

import offramp


def main() -> None:
    """Train, calibrate and evaluate; print what early exit saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="timm:mobilenetv3_small_100")
    parser.add_argument("--data", required=True, help="folder:PATH, with PATH/CLASS/*.jpg")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--weights", type=Path, help="pretrained weights: safetensors or a PyTorch checkpoint")
    parser.add_argument("--pretrained", action="store_true", help="start from timm's pretrained weights")
    parser.add_argument("--exits", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--image-size", type=int, default=160)
    options = parser.parse_args()

    config = offramp.Config(
        net=options.net,
        exits=options.exits,
        branch="byot",
        method="joint",
        data=options.data,
        image_size=options.image_size,
        weights=options.weights,
        pretrained=options.pretrained,
        holdout=0.2,
        epochs=options.epochs,
        batch_size=32,
        lr=0.01,
        schedule="cosine",
        warmup=0.1,
    )
    run = offramp.train(config, out=options.out, resume=True)
    print(offramp.calibrate(run, offramp.Goal(max_drop=0.01)))
    print(offramp.evaluate(run))


if __name__ == "__main__":
    main()
