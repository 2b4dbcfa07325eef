"""Run by the Python that has tuspy: uploads a file over a bad connection; stops; goes on with a new client."""

import json
import sys

from tusclient.client import TusClient  # type: ignore[import-not-found]  # in the client's own environment

address, path = sys.argv[1:]
metadata = {"filename": "a.ogg", "language": "ru"}
first = TusClient(address).uploader(path, chunk_size=500_000, metadata=metadata, upload_checksum=True)
first.upload_chunk()
offsets = [first.offset]

again = TusClient(address).uploader(path, url=first.url, retries=5, retry_delay=1)
offsets.append(again.offset)
again.upload()
offsets.append(again.offset)
print(json.dumps({"url": first.url, "offsets": offsets}))
