"""A process is told from one that has its pid later, and from one elsewhere."""

import os
import signal
import subprocess
import sys
from dataclasses import replace

import msgspec
import psutil

from haltere.workers.pool.whereabouts import Life, Whereabouts, started, this_host
from haltere.workers.wire.messages import Hello, decode, encode


def test_a_process_knows_where_it_is_in_a_word_that_a_message_can_carry() -> None:
    mine = Whereabouts.mine()
    assert mine.pid == os.getpid()
    assert Whereabouts.parse(str(mine)) == mine
    assert decode(encode(Hello(1, "dispatcher", str(mine), 7))) == Hello(1, "dispatcher", str(mine), 7)
    longest = replace(mine, host="n" * 39, pid=2**22, started=2**60)
    msgspec.msgpack.decode(encode(Hello(1, "dispatcher", str(longest)[:64], 7)))
    assert Whereabouts.parse("session") is None


def test_it_lives_also_when_it_is_stopped_and_is_gone_as_soon_as_it_has_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        it = replace(Whereabouts.mine(), pid=child.pid, started=started(child.pid) or 0)
        assert it.life() is Life.LIVES
        child.send_signal(signal.SIGSTOP)
        assert it.life() is Life.LIVES
        child.kill()
        psutil.Process(child.pid).wait(10)  # a zombie is gone, too: this process has not waited for it
        assert it.life() is Life.GONE


def test_a_later_process_with_its_pid_is_another() -> None:
    assert replace(Whereabouts.mine(), started=1).life() is Life.GONE


def test_of_another_host_nothing_is_known() -> None:
    assert replace(Whereabouts.mine(), host="elsewhere.12345678").life() is Life.ELSEWHERE
    assert this_host().count(".") == 1
