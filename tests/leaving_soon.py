"""voltmill, whose processes of a cluster wait for each other for two seconds only. Run with its arguments."""

from voltmill.flows import cli, running

running.LEAVE_SECONDS = 2.0  # type: ignore[misc]

if __name__ == "__main__":
    cli.main()
