"""Takes the lease at a path and says so, or says who has it; holds it until its standard input ends."""

import sys

from pipeline.lease import LeaseHeldError, held

uri, lasts_s = sys.argv[1], float(sys.argv[2])
try:
    with held(uri, lasts_s=lasts_s) as lease:
        print(f"holding {lease.holder.number}", flush=True)
        sys.stdin.read()
        lease.require()
except LeaseHeldError as error:
    print(f"told: {error}", flush=True)
