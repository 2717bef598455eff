"""Ends with 0 when the URL answers 200, else with 1 and one line: the health check of an image that has no curl."""

import sys
import urllib.error
import urllib.request


def main(url: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=4) as answer:
            print(url, answer.status)
    except urllib.error.HTTPError as err:
        sys.exit(f"{url} answers {err.code}: {err.read(300).decode(errors='replace')}")
    except OSError as err:
        sys.exit(f"{url} does not answer: {err}")


if __name__ == "__main__":
    main(sys.argv[1])
