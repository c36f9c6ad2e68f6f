"""Sets behind a URL: requests, downloads, the cache on each machine."""
