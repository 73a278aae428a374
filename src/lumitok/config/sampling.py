"""How samples are drawn from a diffusion network."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lumitok.config.section import Section


class SamplingConfig(Section):
    """Solver and guidance. Times run from 0, noise, to 1, data.

    The papers' settings: LightningDiT (arXiv 2501.01423) takes 249 steps, its "250" being the times
    between them, shift 0.3, and after 64 epochs guidance 10 on 3 channels from 0.1 on; AlignTok the same
    with 30. REPA (arXiv 2410.06940): euler-maruyama, 250 steps, guidance 1.8 from 0.3 on, since it counts
    time from data; REG (arXiv 2507.01467): 2.3 from 0.15 on, its class token alike.
    """

    solver: Literal["euler", "heun", "dopri5", "euler-maruyama", "ddim"] = "euler"
    """``euler``, ``heun``: steps along the flow, of first and second order; ``dopri5``: adaptive steps, each
    sample by itself; ``euler-maruyama``: steps with fresh noise, the last without (SiT, REPA, REG);
    ``ddim``: Euler's steps at ``eta`` 0, with renewed noise above."""
    steps: int = Field(50, ge=1)
    """Steps; each evaluates the network once, ``heun`` twice but for the last. ``dopri5`` takes as many as
    it needs."""
    shift: float = Field(1.0, gt=0)
    """Below 1 the steps lie closer together near noise, above 1 near data (t' = s t / (1 + (s - 1) t));
    ``dopri5`` chooses its own."""
    eta: float = Field(0.0, ge=0, le=1)
    """``ddim``'s share of renewed noise: 0 none, 1 as DDPM."""
    atol: float = Field(1e-6, gt=0)
    """Absolute error that ``dopri5`` allows a step."""
    rtol: float = Field(1e-3, gt=0)
    """Relative error that ``dopri5`` allows a step."""
    guidance: float = Field(1.0, ge=1)
    """How far the velocity is led away from that of no class, or of the network of ``autoguidance``;
    1: not at all."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Times, both included, at which it is guided; a step counts by its beginning. Elsewhere the network is
    evaluated once, not twice (arXiv 2404.07724)."""
    guidance_channels: int | None = Field(None, ge=1)
    """Guide only so many channels of the latent, from the first on; None: all. LightningDiT guides 3."""
    class_guidance: float | None = Field(None, ge=1)
    """Guidance of the class token that is diffused along (REG); None: as ``guidance``. REG's own 0, which
    leaves the token unguided, is 1 here."""
    autoguidance: str | None = None
    """Checkpoint of a smaller or less trained network to lead away from (arXiv 2406.02507), in the place of
    the network without a class."""

    @model_validator(mode="after")
    def _check(self) -> SamplingConfig:
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise ValueError(
                f"guidance_interval is two times, 0 <= low < high <= 1, not {self.guidance_interval}"
            )
        if self.autoguidance and not self.guided:
            raise ValueError("autoguidance leads nowhere at guidance 1; give guidance more than 1")
        if self.eta > 0 and self.solver != "ddim":
            raise ValueError(f"eta belongs to the solver ddim, not to {self.solver}; leave it at 0")
        return self

    @property
    def guided(self) -> bool:
        """Whether any guidance takes part."""
        return self.guidance > 1 or (self.class_guidance or 1) > 1

    @property
    def unheeded(self) -> frozenset[str]:
        """Settings that the solver does not read."""
        return frozenset({"steps", "shift"} if self.solver == "dopri5" else ())
