"""Submits requests without end to the ledger of a storage root and names each one that was acknowledged."""

import sys
from itertools import count

from pipeline.config import parse
from pipeline.config.ledger import LedgerConfig
from pipeline.requests import page, submit

root, writer, start = sys.argv[1:]
for number in count(int(start)):
    config = parse(
        LedgerConfig,
        {
            "storage": root,
            "request": {"id": f"{writer}-{number}", "classes": [1], "exchange": {1: 7}},
        },
    )
    request, _ = submit.submit(config)
    print(request.id, flush=True)
    page.write(root)
