"""One connection, tried out: what ``voltmill check`` says of each system that a configuration names.

Each connector that talks to an outside system has a function ``probe(settings) -> Finding``, which
connects with the credentials of the configuration, asks for the least that proves that they suffice, changes
nothing, gives up within ten seconds, and never raises.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What came of trying one connection.

    Attributes:
        place: the system as messages name it: no secret in it.
        problem: what is wrong, on one line; empty: it works.
        mend: what to do about it, on one line, as a command where there is one.
        facts: what is worth knowing where it works, such as "4 partitions".

    Example:
        >>> print(Finding("the database db.example:5432/fleet", "connection refused", "open the firewall"))
        the database db.example:5432/fleet: connection refused; open the firewall
        >>> print(Finding("IoT Hub bms", facts="4 partitions"))
        IoT Hub bms: works, 4 partitions
    """

    place: str
    problem: str = ""
    mend: str = ""
    facts: str = ""

    @property
    def works(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problem

    def __str__(self) -> str:
        if self.works:
            return f"{self.place}: works" + (f", {self.facts}" if self.facts else "")
        return f"{self.place}: {self.problem}" + (f"; {self.mend}" if self.mend else "")
