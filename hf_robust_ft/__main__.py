"""`python -m hf_robust_ft` is `hf-robust-ft`."""

from hf_robust_ft.cli.main import main

if __name__ == "__main__":
    main()
