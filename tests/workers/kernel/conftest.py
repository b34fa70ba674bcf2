"""The kernel is compiled before the first test: it may take longer than a test may."""

from haltere.workers.kernel import warm_up

warm_up()
