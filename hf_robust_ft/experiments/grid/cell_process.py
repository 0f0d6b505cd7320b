"""One cell as a command of its own, under torchrun or accelerate launch:
`-m hf_robust_ft.experiments.grid.cell_process JOB`."""

import argparse
import json
import os
import sys
import traceback

from hf_robust_ft.experiments.grid.cells import Job
from hf_robust_ft.experiments.grid.run_cell import CellInProgress, record_failure, run_cell
from hf_robust_ft.training.base.launching import check_launch


def main() -> None:
    """Run the cell that the argument describes; a failure is written to the grid's folder by the first rank."""
    parser = argparse.ArgumentParser("python -m hf_robust_ft.experiments.grid.cell_process", description=main.__doc__)
    parser.add_argument("job", help="A cell's job as JSON (`Job.to_dict`).")
    parser.add_argument("--keeps_checkpoint", action="store_true", help="Leave the trained model.")
    options = parser.parse_args()
    job = Job.from_dict(json.loads(options.job))
    try:
        check_launch(job.parse().training)
        run_cell(job, keeps_checkpoint=options.keeps_checkpoint)
    except CellInProgress as error:
        sys.exit(str(error))
    except Exception as error:
        traceback.print_exc()
        # Any rank may be the one that fails first, and the launcher ends the others.
        if not job.failure.is_file():
            rank = os.environ.get("RANK")
            where = f" (rank {rank})" if rank else ""
            record_failure(job, f"{type(error).__name__}: {error}{where}", traceback.format_exc())
        sys.exit(1)


if __name__ == "__main__":
    main()
