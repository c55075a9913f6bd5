"""The CUDA kernels: builds the one fatbin, and checks what the compiler made of them.

    python3 scripts/kernels.py found          whether there is an nvcc
    python3 scripts/kernels.py build FILE     nvcc for every architecture, to FILE
    python3 scripts/kernels.py write          the committed fatbin, after the checks
    python3 scripts/kernels.py check          the checks alone: registers, spills, tensor core
                                              instructions, and whether the committed one is current
    python3 scripts/kernels.py plain FILE     a cublasLt that multiplies by a plain kernel, to FILE

nvcc is found in NVCC, CUDA_HOME, the path, .cuda in the repository, or this Python's packages:
`pip install "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2" nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm`.
Newer than 13.0 makes PTX that drivers of the 580 series refuse.
"""

import ctypes
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src/backend/cuda/kernels"
PREBUILT = ROOT / "src/backend/cuda/prebuilt"
ARCHITECTURES = ["80", "86", "89", "90a", "100a", "120"]
PTX = "80"

# Most registers of each kernel on any architecture. A block of 128 threads with 255 leaves two
# blocks a multiprocessor; attention is to keep two.
REGISTERS = {
    "attention_128": 248,
    "attention_64": 168,
    "attention_32": 136,
    "attention_row_128": 224,
    "attention_row_64": 168,
    "attention_row_32": 128,
    # Three blocks.
    "attention_hopper_128": 168,
    "vocabulary": 96,
    "add_norm_held": 96,
    # A block of 160 threads has a multiprocessor for itself.
    "few_rows_48": 96,
    "few_rows_64": 128,
    "few_rows_96": 128,
    "few_rows_128": 168,
    "few_rows_192": 224,
    "few_rows_gated_64": 128,
    "few_rows_gated_96": 128,
    "few_rows_gated_128": 168,
    "few_rows_gated_192": 224,
    "tall_rows_48": 96,
    "tall_rows_64": 128,
    "tall_rows_96": 128,
    "tall_rows_gated_64": 128,
    "tall_rows_gated_96": 128,
    # With a block of attention beside it.
    "few_rows_turned_64": 128,
    "few_rows_turned_128": 208,
    # 384 threads, exactly so many: who multiplies takes what who copies gives (`check_shares`).
    "many_rows_64": 168,
    "many_rows_128": 168,
    "many_rows_gated_64": 168,
    "many_rows_gated_128": 168,
    "many_rows_256": 168,
    "many_rows_gated_192": 168,
    "many_rows_gated_256": 168,
    "many_rows_turned_128": 168,
    "many_rows_turned_256": 168,
}
ROW_REGISTERS = 64
KERNELS = 19
# Fewest tensor core instructions: what the unrolled loops hold.
PRODUCTS = {
    "attention_32": 24,
    "attention_64": 48,
    "attention_128": 96,
    "attention_row_32": 8,
    "attention_row_64": 16,
    "attention_row_128": 32,
    "vocabulary": 16,
}
# Kernels that only Hopper has, with their fewest.
HOPPER = "90a"
FEW_ROWS = {8: 1, 16: 1, 32: 1, 48: 2, 64: 1, 96: 2, 128: 2, 192: 3}
HOPPER_PRODUCTS = {f"few_rows_{outputs}": 4 * parts for outputs, parts in FEW_ROWS.items()}
HOPPER_PRODUCTS |= {f"few_rows_gated_{outputs}": 4 * parts for outputs, parts in FEW_ROWS.items() if outputs > 8}
HOPPER_PRODUCTS |= {f"tall_rows_{kind}{outputs}": 4 * FEW_ROWS[outputs] for kind in ("", "gated_") for outputs in (32, 48, 64, 96)}
HOPPER_PRODUCTS |= {"few_rows_turned_64": 4, "few_rows_turned_128": 8}
HOPPER_PRODUCTS |= {f"many_rows_{kind}": 8 for kind in ("64", "128", "gated_64", "gated_128", "turned_128")}
HOPPER_PRODUCTS |= {f"many_rows_{kind}": 4 for kind in ("256", "gated_192", "gated_256", "turned_256")}
HOPPER_PRODUCTS |= {"attention_hopper_128": 128 // 16 + 4}


def tool(name):
    """Where a tool of the toolkit lies, or None."""
    named = os.environ.get(name.upper())
    if named:
        return named
    homes = [os.environ.get("CUDA_HOME", "")]
    for prefix in [str(ROOT / ".cuda"), sys.prefix]:
        homes += glob.glob(f"{prefix}/lib/python3*/site-packages/nvidia/cu13")
    for home in filter(None, homes):
        path = Path(home) / "bin" / name
        if path.is_file():
            return str(path)
    return shutil.which(name)


def nvcc(arguments, source=SOURCES / "kernels.cu"):
    compiler = tool("nvcc")
    if compiler is None:
        sys.exit("there is no nvcc: set NVCC or CUDA_HOME (see scripts/kernels.py)")
    command = [compiler, "-std=c++17", "-O3", *arguments, str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    # What ptxas calls a loss: products of warpgroups that wait for each other.
    if done.returncode != 0 or re.search("warning|Potential Performance Loss", done.stdout + done.stderr):
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def build(to):
    """Builds the fatbin; returns what ptxas said."""
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES]
    codes.append(f"-gencode=arch=compute_{PTX},code=compute_{PTX}")
    # Paths of this machine stay out of the file.
    return nvcc(["-fatbin", "-Xptxas", "-v", "-Xfatbin", "-compress-all", *codes, "-o", str(to)])


def libraries():
    """Where the toolkit's libraries lie, to the linker."""
    return f"-L{Path(tool('nvcc') or '').resolve().parent.parent / 'lib'}"


def build_limits(to):
    """Builds the program that measures what bounds the products, or, `to` a name of an object, compiles it alone."""
    code = f"-gencode=arch=compute_{HOPPER},code=sm_{HOPPER}"
    linked = ["-c"] if Path(to).suffix == ".o" else [libraries()]
    nvcc([code, f"-I{SOURCES}", *linked, "-o", str(to)], ROOT / "scripts/trace/limits.cu")


def build_plain(to):
    """Builds what stands for cublasLt where its own kernels cannot run: under compute-sanitizer's racecheck."""
    source = ROOT / "tests/cuda/cublaslt.cpp"
    # The name within is the one by which cudarc asks first: so it finds this one, and not the system's.
    shared = ["-shared", "-Xcompiler", "-fPIC", "-Xlinker", "-soname=libcublasLt.so", libraries()]
    Path(to).parent.mkdir(parents=True, exist_ok=True)
    nvcc(["-x", "cu", "-arch=all-major", *shared, "-o", str(to)], source)
    library = ctypes.CDLL(str(Path(to).resolve()))
    names = re.findall(r"^(?:int|size_t) (cublasLt\w+)\(", source.read_text(), re.M)
    missing = [name for name in names if not hasattr(library, name)]
    if missing or not names:
        sys.exit(f"{to}: without {missing}")


def digest():
    """FNV-1a over the sources' names and contents, as build.rs has it."""
    value = 0xCBF29CE484222325
    for path in sorted(SOURCES.iterdir()):
        for byte in path.name.encode() + path.read_bytes():
            value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def check_resources(log):
    """Registers and spills of every kernel and architecture, from ptxas."""
    found = re.findall(
        r"entry function '(\w+)' for 'sm_(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers",
        log,
        re.S,
    )
    problems, kernels = [], set()
    for name, architecture, _stack, stores, loads, registers in found:
        kernels.add((name, architecture))
        most = REGISTERS.get(name, ROW_REGISTERS)
        if int(stores) or int(loads):
            problems.append(f"{name} spills on sm_{architecture}")
        if int(registers) > most or (name.startswith("many_rows") and architecture == HOPPER and int(registers) < most):
            problems.append(f"{name} takes {registers} registers on sm_{architecture}, not {most}")
    for architecture in ARCHITECTURES:
        count = sum(1 for _, a in kernels if a == architecture)
        if count != KERNELS + (len(HOPPER_PRODUCTS) if architecture == HOPPER else 0):
            problems.append(f"sm_{architecture} has {count} kernels")
    top = {}
    for name, _, _, _, _, registers in found:
        top[name] = max(top.get(name, 0), int(registers))
    print("most registers:", ", ".join(f"{name} {count}" for name, count in sorted(top.items())))
    return problems


def check_shares(name, code):
    """What is wrong with how warpgroups of many rows share out their registers: two take what the third gives. Were it less,
    who takes would wait for ever."""
    if not name.startswith("many_rows"):
        return []
    gives, takes = (re.findall(rf"USETMAXREG\.{what}\S* (?:UP\d, )?(0x[0-9a-f]+)", code) for what in ("DEALLOC", "TRY_ALLOC"))
    if len(gives) == len(takes) == 1 and 2 * int(takes[0], 16) + int(gives[0], 16) <= 3 * REGISTERS[name]:
        return []
    return [f"of {REGISTERS[name]} registers {gives} are kept by who copies, {takes} taken by who multiplies"]


def shared_registers(code):
    """Whether attention's weights are put into registers that hold its queries: ptxas 13.0 did that once, and took the
    queries for unchanged."""
    held = re.findall(r"HGMMA\.\S+ R\d+, (R\d+), gdesc\[[^\]]*\](\.tnspB)?", code)
    queries, weights = ({register for register, by_column in held if bool(by_column) == kind} for kind in (False, True))
    return [f"queries and weights are both in {', '.join(sorted(queries & weights))}"] if queries & weights else []


def one_by_one(code):
    """Whether copies are made in a loop over the lanes that could ask for one: that is about 50 cycles a copy by ptxas' own
    waits, and is gone where the compiler knows that one lane asks (`is_elected`)."""
    count = len(re.findall(r"\bBRA\.U\.ANY\b", code))
    return [f"{count} loops over lanes"] if count else []


def check_products(fatbin):
    """Tensor core instructions of every kernel that is to have them, and what none is to have, from the machine code."""
    dump, disassembler = tool("cuobjdump"), tool("nvdisasm")
    if dump is None or disassembler is None:
        print("SKIPPED: no cuobjdump and nvdisasm (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm)")
        return []
    problems = []
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run([dump, "-xelf", "all", str(Path(fatbin).resolve())], cwd=directory, check=True, capture_output=True)
        cubins = sorted(Path(directory).glob("*.cubin"))
        if len(cubins) != len(ARCHITECTURES):
            problems.append(f"{len(cubins)} architectures in the fatbin, not {len(ARCHITECTURES)}")
        for cubin in cubins:
            text = subprocess.run([disassembler, "-c", str(cubin)], check=True, capture_output=True, text=True).stdout
            counts = {}
            for part in re.split(r"^\s*\.section\s+", text, flags=re.M):
                name = re.match(r"\.text\.(\w+)", part)
                if name:
                    counts[name.group(1)] = len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", part))
                    found = shared_registers(part) + one_by_one(part) + check_shares(name.group(1), part)
                    problems += [f"{name.group(1)}: {problem}" for problem in found]
            architecture = re.search(r"sm_\w+", cubin.name).group(0)
            shown = []
            for name, fewest in {**PRODUCTS, **(HOPPER_PRODUCTS if architecture == f"sm_{HOPPER}" else {})}.items():
                shown.append(f"{name} {counts.get(name, 0)}")
                if counts.get(name, 0) < fewest:
                    problems.append(f"{name} has {counts.get(name, 0)} matrix instructions on {architecture}, under {fewest}")
            print(f"{architecture}: matrix instructions:", ", ".join(shown))
    return problems


def check(fatbin):
    problems = check_resources(build(fatbin)) + check_products(fatbin)
    print(f"fatbin: {Path(fatbin).stat().st_size >> 10} KiB, sources {digest()}")
    for problem in problems:
        print("FAILED:", problem)
    if problems:
        sys.exit(1)


def main():
    match sys.argv[1:]:
        case ["found"]:
            sys.exit(tool("nvcc") is None)
        case ["build", to]:
            build(to)
        case ["plain", to]:
            build_plain(to)
        case ["write"]:
            PREBUILT.mkdir(exist_ok=True)
            check(PREBUILT / "kernels.fatbin")
            (PREBUILT / "kernels.hash").write_text(digest() + "\n")
        case ["check"]:
            with tempfile.TemporaryDirectory() as directory:
                check(Path(directory) / "kernels.fatbin")
                build_limits(Path(directory) / "limits.o")
                build_plain(Path(directory) / "libcublasLt.so.13")
            if (PREBUILT / "kernels.hash").read_text().strip() != digest():
                sys.exit("the committed fatbin is stale: python3 scripts/kernels.py write")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
