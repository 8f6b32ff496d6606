"""Each process of a run sends heartbeats; if one stops, the others name it and exit.

Without this, a process waiting for a lost one hangs until its collective times out, half an hour by default, without
saying which process is missing.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist

logger = logging.getLogger(__name__)

BEAT = 2.0  # seconds between heartbeats
SILENCE = 30.0  # seconds without a heartbeat after which a process counts as lost
SHORT_SILENCE = 3 * BEAT  # the same, after a collective has failed
ENDED = b"ended"


class Heartbeat:
    """A thread that sends and checks heartbeats over its own connection to the rendezvous store."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=SILENCE))
        self.silence = SILENCE
        self._stopped = threading.Event()
        self.store.set(f"heartbeat/who/{rank}", f"rank {rank} (process {os.getpid()} on {socket.gethostname()})")
        self.store.set(f"heartbeat/{rank}", "0")
        self.names = [self.store.get(f"heartbeat/who/{peer}").decode() for peer in range(world_size)]
        self._answered = time.monotonic()
        self._since = [self._answered] * world_size  # when each process's beats have changed
        self._thread = threading.Thread(target=self._live, name="heartbeat", daemon=True)
        self._thread.start()
        # A query to a store whose process is suspended hangs for ever, regardless of its timeout.
        threading.Thread(target=self._watch_store, name="heartbeat-store", daemon=True).start()
        atexit.register(self._end)

    def stop(self) -> None:
        """Stop sending and checking; afterwards all processes must synchronise before the first one exits."""
        self._stopped.set()
        self._thread.join()
        atexit.unregister(self._end)

    def name_the_lost(self) -> None:
        """After a failed collective, wait for a short time; if a process is lost, exit with a line that names it."""
        self.silence = SHORT_SILENCE
        self._stopped.wait(SHORT_SILENCE + 3 * BEAT)

    def _live(self) -> None:
        keys = [f"heartbeat/{peer}" for peer in range(self.world_size)]
        seen: list[bytes] = [b""] * self.world_size
        count = 0
        while self._rest():
            count += 1
            try:
                self.store.set(keys[self.rank], str(count))
                beats = self.store.multi_get(keys)
            except RuntimeError as error:
                logger.debug("the store: %s", error)
                return  # the other thread reports it, unless the run is just ending
            now = self._answered = time.monotonic()
            for peer, beat in enumerate(beats):
                if beat != seen[peer]:
                    seen[peer], self._since[peer] = beat, now
                limit = 2 * BEAT if beat == ENDED else self.silence
                if peer != self.rank and now - self._since[peer] > limit:
                    how = "has ended before the others; what it wrote last says why" if beat == ENDED else "is lost"
                    self._leave(f"{self.names[peer]} {how}" + ("" if beat == ENDED else f": silent for {limit:.0f} s"))

    def _rest(self) -> bool:
        """Wait for a beat; return False at the end. Who was suspended meanwhile, with the whole job, counts anew."""
        begun = time.monotonic()
        if self._stopped.wait(BEAT):
            return False
        if (now := time.monotonic()) - begun > 3 * BEAT:
            self._answered, self._since = now, [now] * self.world_size
        return True

    def _watch_store(self) -> None:
        while self._rest():
            if (silent := time.monotonic() - self._answered) > self.silence:
                self._leave(f"{self.names[0]}, or its launcher, is lost: the store is silent for {silent:.0f} s")

    def _leave(self, why: str) -> None:
        sys.stderr.write(f"error: {why}. {self.names[self.rank]} ends as well. Start again with --resume auto.\n")
        sys.stderr.flush()
        logging.shutdown()
        os._exit(1)

    def _end(self) -> None:
        """Tell the other processes that this one ends without them."""
        self._stopped.set()
        self._thread.join(BEAT)
        try:
            self.store.set(f"heartbeat/{self.rank}", ENDED.decode())
        except RuntimeError:
            logger.debug("the store is gone already")
