"""Work dealt out over the processes of a launcher (torchrun, accelerate launch): each takes its turns, the first puts it together."""

import datetime
import os

#: How long the first process waits for the slowest.
_TIMEOUT = datetime.timedelta(hours=24)


def rank_and_world() -> tuple[int, int]:
    """Which process this is, of how many: (0, 1) without a launcher."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def wait_for_all() -> None:
    """Returns when every process has come here. When one fails, the launcher ends the others."""
    if rank_and_world()[1] == 1:
        return
    import torch.distributed as distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=_TIMEOUT)
    distributed.barrier()
