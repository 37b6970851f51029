"""`python train.py --config configs/default.yaml`: the same as `python -m trainer`."""

from trainer.__main__ import exit_now, main

if __name__ == "__main__":
    exit_now(main())
