"""Nothing here is a test or holds doctests: these modules run flows in processes of their own."""

collect_ignore_glob = ["*.py"]
