"""What leaves for production: one policy as it was measured, with all that is needed to check it elsewhere.

    policy.yaml            what was done
    model.*                the engine's own artifact: the program that was measured
                             eager, inductor   model.pt2: torch.export's archive, without the pickles it may hold
                             aot               model.pt2: machine code; model.json: what a profile cannot tell of it
                             onnxruntime       model.onnx
                             transformers      model.hf/: what from_pretrained takes; model.json: what is around it
    weights.safetensors    the model's weights after pruning and distillation, before quantization
    golden.safetensors     real inputs and this program's outputs
    reference/             what it was measured beside: artifact and recipe.json (absent: it is the reference itself)
    MODEL_CARD.md          for people
    manifest.json          for programs: recipe, numbers with intervals, hardware, versions; size and hash of every file

`export` writes the folder and never trains; `read` checks it before anything in it is opened; `load` runs it; `verify`
compares its outputs, and its energy where that can be compared; `check` holds it to limits too; `convert` writes the
program in another engine's format, whose energy nobody measured. The hashes prove that nothing changed since the export
(integrity), not who made it (origin): what holds machine code is loaded only where the caller says so.
"""

from autogreen.bundle.check import Check, Limits, check
from autogreen.bundle.convert import Conversion, convert
from autogreen.bundle.manifest import Manifest, prediction
from autogreen.bundle.read import load, read
from autogreen.bundle.verify import Verification, verify
from autogreen.bundle.write import export

__all__ = [
    "Check",
    "Conversion",
    "Limits",
    "Manifest",
    "Verification",
    "check",
    "convert",
    "export",
    "load",
    "prediction",
    "read",
    "verify",
]
