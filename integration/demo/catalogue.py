"""The demo's reference data as plain data: venues, instruments, sources, and how each instrument is sent.

No Django: `load_demo` turns it into rows, the feed turns it into events.
"""

from dataclasses import dataclass
from typing import Final, TypedDict, Unpack

from integration.market.units import NANOS

ASSET_CLASSES: Final = ("equities", "fixed-income", "currencies", "commodities", "alternative")

REPLAY: Final = "cme-replay"
REPLAY_MIC: Final = "RPLY"
SIMULATED: Final = "simulated"

# The forms of docs/events.md. An instrument sent as DISTRIBUTED, which knows trades only, has its quotes as NORMALIZED.
NORMALIZED: Final = 1
DISTRIBUTED: Final = 2
PROVIDER: Final = 3
ARROW: Final = 4


class Style(TypedDict, total=False):
    """How an instrument's events are written."""

    by_isin: bool
    times_as_text: bool
    prices_as_text: bool


@dataclass(frozen=True, slots=True)
class Venue:
    """A venue of the demo; both are always open, so that the pages move on a Sunday too."""

    mic: str
    name: str
    timezone: str


@dataclass(frozen=True, slots=True)
class DemoInstrument:
    """One instrument: its reference data, how it is sent, and how its simulated path looks.

    `tick` in nanos. `text` is the instrument text on the wire and the message key. `share` is its part of the simulated
    rate, `typical_size` and `lot` describe the log-normal sizes.
    """

    symbol: str
    mic: str
    name: str
    asset_class: str
    form: int
    tick: int = NANOS // 100
    decimals: int = 2
    currency: str = "USD"
    issuer: str = ""
    isin: str = ""
    by_isin: bool = False
    allows_negative: bool = False
    times_as_text: bool = False
    prices_as_text: bool = True
    share: float = 1.0
    typical_size: int = 200
    lot: int = 1

    @property
    def ticker(self) -> str:
        return f"{self.symbol}.{self.mic}"

    @property
    def text(self) -> str:
        return f"ISIN:{self.isin}" if self.by_isin else self.ticker

    @property
    def source(self) -> str:
        return REPLAY if self.mic == REPLAY_MIC else SIMULATED

    @property
    def channel(self) -> int:
        """Number a channel per topic and form (11 … 54), so that a channel's order is that of one kind of message; 1 is the replay."""
        if self.mic == REPLAY_MIC:
            return 1
        return 10 * (1 + ASSET_CLASSES.index(self.asset_class)) + self.form


VENUES: Final = (
    Venue(REPLAY_MIC, "Replay (always open)", "America/Chicago"),
    Venue("SIMX", "Simulated exchange (always open)", "UTC"),
)

# An equity index future is sent on the commodities topic: what decides is how a contract lives, not what it is about. It has
# an expiry and no issuer, pays no dividend and never splits, like the other futures there and unlike anything in equities.
E_MINI: Final = DemoInstrument(
    "ESU3", REPLAY_MIC, "E-mini S&P 500 September 2013 (replay)", "commodities", ARROW, tick=NANOS // 4
)  # fmt: skip


def _fund(
    symbol: str,
    name: str,
    form: int,
    *,
    isin: str = "",
    asset_class: str = "equities",
    issuer: str = "iShares",
    **style: Unpack[Style],
) -> DemoInstrument:
    return DemoInstrument(
        symbol, "SIMX", f"{name} (simulated)", asset_class, form, isin=isin, issuer=issuer, **style
    )  # fmt: skip


def _bond_fund(
    symbol: str, name: str, form: int, *, isin: str, issuer: str = "iShares", **style: Unpack[Style]
) -> DemoInstrument:
    return _fund(symbol, name, form, isin=isin, asset_class="fixed-income", issuer=issuer, **style)


def _sector(symbol: str, name: str, form: int, isin: str, **style: Unpack[Style]) -> DemoInstrument:
    return _fund(symbol, f"{name} Select Sector SPDR", form, isin=isin, issuer="State Street", **style)


def _share(symbol: str, name: str, isin: str, **style: Unpack[Style]) -> DemoInstrument:
    return DemoInstrument(
        symbol, "SIMX", f"{name} (simulated)", "equities", DISTRIBUTED, isin=isin, issuer=name, share=2.0, typical_size=150, **style
    )  # fmt: skip


# ISINs are given where they are certain; EWJ and EWU changed theirs in 2016 and go without.
SIMULATED_INSTRUMENTS: Final = (
    _share("AAPL", "Apple Inc.", "US0378331005", prices_as_text=False),
    _share("IBM", "International Business Machines Corp.", "US4592001014", times_as_text=True, prices_as_text=False),
    _share("MSFT", "Microsoft Corp.", "US5949181045"),
    _fund("SPY", "SPDR S&P 500", ARROW, isin="US78462F1030", issuer="State Street"),
    _fund("DIA", "SPDR Dow Jones Industrial Average", NORMALIZED, isin="US78467X1090", issuer="State Street", by_isin=True),
    _fund("EEM", "iShares MSCI Emerging Markets", NORMALIZED, isin="US4642872349"),
    _fund("EFA", "iShares MSCI EAFE", NORMALIZED, isin="US4642874659", prices_as_text=False),
    _fund("EPP", "iShares MSCI Pacific ex Japan", NORMALIZED, isin="US4642866655", times_as_text=True),
    _fund("EWG", "iShares MSCI Germany", NORMALIZED, isin="US4642868065", times_as_text=True, prices_as_text=False),
    _fund("EWJ", "iShares MSCI Japan", PROVIDER),
    _fund("EWQ", "iShares MSCI France", PROVIDER, isin="US4642867075", prices_as_text=False),
    _fund("EWU", "iShares MSCI United Kingdom", PROVIDER, times_as_text=True),
    _fund("FXI", "iShares China Large-Cap", PROVIDER, isin="US4642871846", times_as_text=True, prices_as_text=False),
    _fund("VGK", "Vanguard FTSE Europe", DISTRIBUTED, isin="US9220428745", issuer="Vanguard"),
    _fund("VPL", "Vanguard FTSE Pacific", DISTRIBUTED, isin="US9220428661", issuer="Vanguard", times_as_text=True),
    _sector("XLB", "Materials", NORMALIZED, "US81369Y1001"),
    _sector("XLE", "Energy", PROVIDER, "US81369Y5069"),
    _sector("XLF", "Financial", DISTRIBUTED, "US81369Y6059", prices_as_text=False),
    _sector("XLK", "Technology", ARROW, "US81369Y8030"),
    _sector("XLU", "Utilities", ARROW, "US81369Y8865"),
    _bond_fund("TIP", "iShares TIPS Bond", NORMALIZED, isin="US4642871762", times_as_text=True),
    _bond_fund("IEF", "iShares 7-10 Year Treasury Bond", PROVIDER, isin="US4642874402"),
    _bond_fund("TLT", "iShares 20+ Year Treasury Bond", NORMALIZED, isin="US4642874329", prices_as_text=False),
    _bond_fund("LQD", "iShares Investment Grade Corporate Bond", PROVIDER, isin="US4642872422", times_as_text=True),
    _bond_fund("CSJ", "iShares 1-3 Year Credit Bond", DISTRIBUTED, isin="US4642886463"),
    _bond_fund("BND", "Vanguard Total Bond Market", ARROW, isin="US9219378356", issuer="Vanguard"),
    DemoInstrument(
        "EURUSD", "SIMX", "Euro / US dollar (simulated)", "currencies", PROVIDER, tick=NANOS // 100_000, decimals=5,
        share=3.0, typical_size=1_000_000, lot=100_000,
    ),
    DemoInstrument(
        "WTI", "SIMX", "West Texas Intermediate crude oil (simulated)", "commodities", NORMALIZED, allows_negative=True,
        share=2.0, typical_size=3,
    ),
    DemoInstrument(
        "VIX", "SIMX", "Implied volatility index level (simulated)", "alternative", PROVIDER, times_as_text=True,
        share=0.5, typical_size=1,
    ),
)  # fmt: skip

INSTRUMENTS: Final = (E_MINI, *SIMULATED_INSTRUMENTS)

# Sent now and then by the faults and registered nowhere: the service must park it until somebody names it.
UNKNOWN: Final = DemoInstrument("NEWCO", "SIMX", "", "equities", NORMALIZED)


@dataclass(frozen=True, slots=True)
class DemoSource:
    """Who sends, and the asset classes whose topics it may use."""

    code: str
    name: str
    is_simulated: bool
    asset_classes: tuple[str, ...]


SOURCES: Final = (
    DemoSource(REPLAY, "CME trades of September 2013, replayed at today's time", False, ("commodities",)),
    DemoSource(SIMULATED, "Simulated between real daily prices", True, ASSET_CLASSES),
)
