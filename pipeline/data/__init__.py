"""From raw images to the rows of a step: sources, the lake, the partition of a request, its streams,
tombstones."""
