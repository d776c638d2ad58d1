"""The gateway and its peers on one machine, in one run: a table, a JSON file and a plot.

    benchmarks/serving/install_peers && make triton
    python benchmarks/serving/compare.py --out runs/serving

For each of two models (peers/picture.py) every server is started alone and driven to saturation by
closed loops; then each is started again and asked in an open loop, all at the same rate: 70 % of
what the slowest of LitServe, BentoML and Ray Serve can do. About ten minutes.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from asks import asks, digests
from measure import Latency, Saturation, latency, saturation
from servers import PEERS_BIN, DidNotStartError, Server, all_servers, missing, running
from verdict import Verdict, conclude

MODELS = ("null", "shapes")
SHARE = 0.7
RIVALS = {"LitServe": 1.5, "BentoML": 1.5, "Ray Serve": 2.0}  # how much faster we are to be

Saturations = dict[str, Saturation]
Latencies = dict[str, Latency]


def saturate(model: str, servers: list[Server], right: list[bytes], seconds: float) -> Saturations:
    """Each server's saturation, by its name; a server that does not start is left out, and said."""
    found = {}
    for server in servers:
        requests = asks(model, right, server.triton)
        try:
            with running(server, model, requests[0]) as started:
                found[server.name] = saturation(started, requests, seconds)
        except DidNotStartError as error:
            print(f"{server.name} did not start: {error}", file=sys.stderr)
            continue
        one = found[server.name]
        print(
            f"{model:7} {server.name:18} {one.rate:8.1f}/s {one.cpu_ms:8.2f} ms CPU each, "
            f"{one.memory_mb:6.0f} MB, alone {one.unloaded_ms:6.2f} ms, {one.errors} errors",
            flush=True,
        )
    return found


def load(
    model: str, servers: list[Server], right: list[bytes], rate: float, seconds: float
) -> Latencies:
    """Each server's latency at one rate, by its name."""
    found = {}
    for server in servers:
        requests = asks(model, right, server.triton)
        with running(server, model, requests[0]) as started:
            found[server.name] = latency(started, requests, rate, seconds)
        one = found[server.name]
        print(
            f"{model:7} {server.name:18} at {rate:6.1f}/s: median {one.median_ms:7.2f} ms, "
            f"p99 {one.p99_ms:8.2f} ms, {one.errors} errors",
            flush=True,
        )
    return found


def common_rate(saturations: Saturations) -> float:
    """70 % of the slowest rival's saturation; of the slowest server's, where no rival ran."""
    rivals = [one.rate for name, one in saturations.items() if name in RIVALS]
    return SHARE * min(rivals or [one.rate for one in saturations.values()])


def verdicts(saturations: Saturations, latencies: Latencies) -> list[Verdict]:
    """The null model's figures of every rival that ran."""
    ours, found = "singlepass", []
    for name, times in RIVALS.items():
        if name not in latencies or ours not in latencies:
            continue
        faster = saturations[ours].rate / saturations[name].rate
        found.append(Verdict(f"requests/s against {name}", faster, times, "x", at_least=True))
        shorter = latencies[ours].p99_ms / latencies[name].p99_ms
        found.append(Verdict(f"p99 against {name} at the same rate", shorter, 0.5, "x"))
    return found


def machine() -> dict[str, object]:
    """What the figures hang on."""
    cpus = Path("/proc/cpuinfo").read_text().split("model name\t: ")
    freeze = [PEERS_BIN / "python", "-m", "pip", "freeze", "--disable-pip-version-check"]
    listed = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout.split()
    names = ("litserve", "bentoml", "ray", "fastapi", "uvicorn", "onnxruntime")
    return {
        "processor": cpus[1].partition("\n")[0],
        "processors": len(cpus) - 1,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"singlepass": version("singlepass")}
        | dict(line.split("==") for line in listed if line.partition("==")[0] in names),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/serving"), help="folder")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each closed loop")
    parser.add_argument("--open-seconds", type=float, default=10.0, help="of each open loop")
    parser.add_argument("--servers", help="names, comma separated; all if not given")
    parser.add_argument("--models", default=",".join(MODELS))
    args = parser.parse_args()
    known = {server.name: server for server in all_servers()}
    wanted = args.servers.split(",") if args.servers else [*known]
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"--servers has {', '.join(unknown)}, allowed are: {', '.join(known)}")
    servers = [known[name] for name in wanted]
    for server in servers:
        if lacks := missing(server):
            sys.exit(f"{server.name} is not installed: {lacks}")
    result: dict[str, object] = {"machine": machine(), "at": time.strftime("%Y-%m-%d %H:%M UTC")}
    found: list[Verdict] = []
    for model in args.models.split(","):
        right = digests(model)
        saturations = saturate(model, servers, right, args.seconds)
        rate = common_rate(saturations)
        ran = [server for server in servers if server.name in saturations]
        latencies = load(model, ran, right, rate, args.open_seconds)
        found += verdicts(saturations, latencies) if model == "null" else []
        result[model] = {
            name: {"saturation": one.as_json(), "latency": latencies[name].as_json()}
            for name, one in saturations.items()
        }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / "compare.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    plot = [PEERS_BIN / "python", Path(__file__).with_name("plot.py"), file, args.out]
    subprocess.run(plot, check=True)
    return conclude(found)


if __name__ == "__main__":
    sys.exit(main())
