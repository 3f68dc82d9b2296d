"""Requests that no client of this project sends, made from a seed: the same ones every time.

Each starts as a good request and has one thing wrong with it. What is known to kill Triton 2.51
stands apart, in `KILLERS`.
"""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from tritonclient.grpc import service_pb2

from reverse_image_search import contract

HEADER_LENGTH = "Inference-Header-Content-Length"

# The JSON reader of Triton takes memory for as many elements as `shape` says before it looks at
# `data`: above this many, a request is a killer (see KILLERS) or comes close.
MOST_ELEMENTS = 2**22


@dataclass(frozen=True)
class HttpRequest:
    """`must_fail`: only an error will do; otherwise a right answer will do as well."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    must_fail: bool = True


@dataclass(frozen=True)
class GrpcRequest:
    """A serialized ModelInferRequest."""

    name: str
    body: bytes
    must_fail: bool = True


def example_shape(model: contract.ModelSpec, embedding_dim: int) -> list[int]:
    """Shape of a small good input: one image of 4 by 5 pixels, or one embedding."""
    dims = (3, 4, 5) if model is contract.IMAGE_ENCODER else (embedding_dim,)
    return [1, *dims]


def http_requests(seed: int, embedding_dim: int) -> Iterator[HttpRequest]:
    """Bad requests to both models over HTTP."""
    for model in contract.MODELS:
        maker = _HttpMaker(random.Random(f"{seed} {model.name}"), model, embedding_dim)
        yield from maker.all()


def grpc_requests(seed: int, embedding_dim: int) -> Iterator[GrpcRequest]:
    """Bad requests to both models over gRPC."""
    for model in contract.MODELS:
        maker = _GrpcMaker(random.Random(f"{seed} {model.name}"), model, embedding_dim)
        yield from maker.all()


# Values where a dimension, a size or a count belongs.
_NO_DIMENSIONS = (-1, -(2**31), -(2**63), 1.5, "1", None, True, [], {}, 10**30, 1e30)
_WRONG_DATATYPES = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP64", "BF16", "BYTES", "fp32", "FP32 ", "", "X" * 10_000, None, 5, [], {}),
)
_WRONG_NAMES = ("", "INPUT", "INPUT__1", "input__0", "OUTPUT__0", "X" * 100_000, "\0", "é", "../x")
_NO_JSON = (
    b"", b" ", b"{}", b"[]", b"null", b"0", b'"x"', b"{", b"[", b'{"inputs"', b"\xff\xfe{}",
    b"\xef\xbb\xbf{}", b"\0" * 64, b"{'inputs': []}", b'{"inputs": [,]}', b"[" * 100_000,
    b'{"inputs":null}', b'{"inputs":{}}', b'{"inputs":5}', b'{"inputs":[]}', b'{"inputs":[null]}',
    b'{"inputs":[[]]}', b'{"inputs":[{}]}', b'{"inputs":[' + b"{}," * 10_000 + b"{}]}",
    b"1" * 100_000, b"-" * 1000, b"1e999", b'"' + b"\\u0000" * 1000 + b'"',
)  # fmt: skip


class _HttpMaker:
    def __init__(self, rng: random.Random, model: contract.ModelSpec, embedding_dim: int) -> None:
        self._rng = rng
        self._model = model
        self._shape = example_shape(model, embedding_dim)
        self._path = f"/v2/models/{model.name}/infer"

    def all(self) -> Iterator[HttpRequest]:
        yield from self._json_inputs()
        yield from self._json_outputs_and_parameters()
        yield from self._binary()
        yield from self._no_json()
        yield from self._paths()
        for _ in range(60):
            yield self._damaged(self._good_json(), {})
            body, headers = self._good_binary()
            yield self._damaged(body, headers)

    def _good(self) -> dict:
        (spec,) = self._model.inputs
        count = math.prod(self._shape)
        tensor = {"name": spec.name, "shape": list(self._shape), "datatype": spec.datatype}
        return {"inputs": [tensor | {"data": [0.5] * count}]}

    def _good_json(self) -> bytes:
        return json.dumps(self._good()).encode()

    def _good_binary(self, **changes: object) -> tuple[bytes, dict[str, str]]:
        request = self._good()
        del request["inputs"][0]["data"]
        payload = bytes(4 * math.prod(self._shape))
        request["inputs"][0] |= {"parameters": {"binary_data_size": len(payload)}} | changes
        header = json.dumps(request).encode()
        return header + payload, {HEADER_LENGTH: str(len(header))}

    def _request(self, name: str, body: object, must_fail: bool = True, **headers) -> HttpRequest:
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        return HttpRequest(
            f"{self._model.name} {name}", self._path, body, headers, "POST", must_fail
        )

    def _json_inputs(self) -> Iterator[HttpRequest]:
        for key, values in (("name", _WRONG_NAMES), ("datatype", _WRONG_DATATYPES)):
            for value in values:
                yield self._with_input(f"{key} {str(value)[:20]!r}", {key: value})
        for key in ("name", "shape", "datatype", "data"):
            request = self._good()
            del request["inputs"][0][key]
            yield self._request(f"no {key}", request)
        for value in (*_NO_DIMENSIONS, 0, 2, 65, 1000, 2**16):
            for axis in range(len(self._shape)):
                shape: list = list(self._shape)
                shape[axis] = value
                yield self._with_input(
                    f"shape {shape}", {"shape": shape}, must_fail=not _is_one_image(shape)
                )
        for _ in range(40):
            shape = [
                self._rng.choice((0, 1, 2, 3, 4, 5, 64, 65)) for _ in range(self._rng.randrange(8))
            ]
            if shape != self._shape and math.prod(shape) <= MOST_ELEMENTS:
                yield self._with_input(
                    f"shape {shape}", {"shape": shape}, must_fail=not _is_one_image(shape)
                )
                yield self._with_input(
                    f"shape {shape}, data to match",
                    {"shape": shape, "data": [0.5] * math.prod(shape)},
                    must_fail=False,
                )
        count = math.prod(self._shape)
        for data in (
            [], [0.5] * (count - 1), [0.5] * (count + 1), [0.5] * 100_000, ["x"] * count,
            [None] * count, [True] * count, [[0.5] * count, [0.5]], [{}] * count, {}, None, 0.5,
            "x", [[[[0.5]]]], ["\0" * 1000] * count,
        ):  # fmt: skip
            yield self._with_input(f"data {str(data)[:20]}", {"data": data})
        yield self._with_input("data 1e999", {"data": [0.5] * count}, swap=(b"0.5", b"1e999"))
        # Triton flattens what is nested, whether it fits or not.
        for data in ([[0.5]] * count, [0.5, [0.5]] * (count // 2)):
            yield self._with_input(f"data {data[:2]}", {"data": data}, must_fail=False)
        twice = self._good()
        twice["inputs"] *= 2
        yield self._request("the input twice", twice)
        yield self._request("the input 10,000 times", {"inputs": twice["inputs"] * 5_000})
        extra = self._good()
        extra["inputs"].append(extra["inputs"][0] | {"name": "INPUT__1"})
        yield self._request("an input too many", extra)
        for key in ("shared_memory_region", "shared_memory_byte_size", "binary_data_size"):
            for value in (-1, 2**64, "x", None, []):
                yield self._with_input(
                    f"{key} {value}", {"parameters": {key: value}}, must_fail=False
                )
        region = {"shared_memory_region": "x", "shared_memory_byte_size": 4 * count}
        request = self._with_input("unknown shared memory", {"parameters": region})
        yield HttpRequest(request.name, request.path, _without_data(request.body))

    def _with_input(
        self, name: str, changes: dict, must_fail: bool = True, swap: tuple = (b"", b"")
    ) -> HttpRequest:
        request = self._good()
        request["inputs"][0] |= changes
        body = json.dumps(request).encode().replace(*swap) if swap[0] else request
        return self._request(f"JSON {name}", body, must_fail)

    def _json_outputs_and_parameters(self) -> Iterator[HttpRequest]:
        (first, *_) = self._model.outputs
        for outputs in (
            [{"name": "NONE"}],
            [{}],
            [5],
            5,
            {},
            None,
            "x",
            [[]],
            [{"name": None}],
            [{"name": first.name, "parameters": {"classification": -1}}],
            [{"name": first.name, "parameters": {"binary_data": "x"}}],
            [
                {
                    "name": first.name,
                    "parameters": {"shared_memory_region": "x", "shared_memory_byte_size": 4},
                }
            ],
        ):
            yield self._request(f"outputs {outputs}"[:60], self._good() | {"outputs": outputs})
        for count in (1, 3, 2**31, 2**63):
            asked = [{"name": first.name, "parameters": {"classification": count}}]
            yield self._request(f"classification {count}", self._good() | {"outputs": asked}, False)
        for key in (
            "sequence_id",
            "sequence_start",
            "priority",
            "timeout",
            "binary_data_output",
            "x",
        ):
            for value in (-1, 2**64, "x" * 1000, None, [], {}, True, 1.5):
                parameters = {"parameters": {key: value}}
                yield self._request(f"{key} {str(value)[:9]}", self._good() | parameters, False)
        yield self._request("id of a megabyte", self._good() | {"id": "x" * 2**20}, False)
        yield self._request("id 5", self._good() | {"id": 5})

    def _binary(self) -> Iterator[HttpRequest]:
        size = 4 * math.prod(self._shape)
        for value in (
            0,
            1,
            size - 1,
            size + 1,
            2 * size,
            2**31,
            2**40,
            2**63,
            2**64,
            *_NO_DIMENSIONS,
        ):
            body, headers = self._good_binary(parameters={"binary_data_size": value})
            yield self._request(f"binary_data_size {value}", body, **headers)
        for value in (
            "0",
            "-1",
            "1",
            "7",
            "100000",
            str(2**63),
            str(2**70),
            "x",
            "",
            "0x10",
            "1e3",
        ):
            body, _ = self._good_binary()
            yield self._request(f"header length {value!r}", body, **{HEADER_LENGTH: value})
        for value in (0, 2, 65, 2**31, 2**40, 2**62, 2**63 - 1, *_NO_DIMENSIONS):
            for axis in range(len(self._shape)):
                shape: list = list(self._shape)
                shape[axis] = value
                body, headers = self._good_binary(shape=shape)
                name, must_fail = f"binary, shape {shape}", not _is_one_image(shape)
                yield self._request(name, body, must_fail, **headers)
        for datatype in _WRONG_DATATYPES:
            body, headers = self._good_binary(datatype=datatype)
            yield self._request(f"binary, datatype {str(datatype)[:9]}", body, **headers)
        body, headers = self._good_binary()
        for extra in (1, 4, 2**20, 2**25):
            yield self._request(f"{extra} bytes too many", body + bytes(extra), **headers)
        for _ in range(20):
            cut = self._rng.randrange(len(body))
            yield self._request(f"cut at byte {cut}", body[:cut], **headers)
        # What `shape` and size agree on is taken as pixels, whatever they are.
        count = math.prod(self._shape)
        for value in (np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 1e-45, -0.0):
            pixels = np.full(count, value, np.float32).tobytes()
            yield self._request(f"all {value}", body[: -len(pixels)] + pixels, False, **headers)

    def _no_json(self) -> Iterator[HttpRequest]:
        for body in _NO_JSON:
            yield self._request(f"body {body[:20]!r}", body)
            yield self._request(
                f"body {body[:20]!r}, as gzip", body, **{"Content-Encoding": "gzip"}
            )
        packed = gzip.compress(self._good_json())
        for cut in (1, len(packed) // 2, len(packed) - 1):
            yield self._request(
                f"gzip cut at {cut}", packed[:cut], False, **{"Content-Encoding": "gzip"}
            )
        yield self._request("deflate that is none", b"x", **{"Content-Encoding": "deflate"})

    def _paths(self) -> Iterator[HttpRequest]:
        body = self._good_json()
        model = f"/v2/models/{self._model.name}"
        for path in (
            "/v2/models/none/infer", "/v2/models//infer", "/v2/models/../infer",
            "/v2/models/%00/infer", "/v2/models/" + "x" * 4000 + "/infer", f"{self._path}/x",
            f"{model}/versions/2/infer", f"{model}/versions/x/infer", f"{model}/versions/-1/infer",
            f"{model}/versions/{2**64}/infer", f"{model}/generate", f"{model}/generate_stream",
            "/v3/models", "/", "//", "/%", "/v2/../../etc/passwd",
            f"/v2/repository/models/{self._model.name}/load", "/v2/repository/models/%2e%2e/unload",
            "/v2/systemsharedmemory/region/x/register", "/v2/cudasharedmemory/region/x/register",
        ):  # fmt: skip
            yield HttpRequest(f"POST {path[:60]}", path, body)
        for method in ("GET", "PUT", "DELETE", "PATCH"):
            yield HttpRequest(f"{method} {self._path}", self._path, body, {}, method)

    def _damaged(self, body: bytes, headers: dict[str, str]) -> HttpRequest:
        """Some bytes of the JSON part changed at random; it may still mean something."""
        end = int(headers.get(HEADER_LENGTH, len(body)))
        while True:
            damaged = bytearray(body)
            for _ in range(self._rng.randint(1, 4)):
                damaged[self._rng.randrange(end)] = self._rng.choice(
                    b'0123456789-.eE[]{},:"\\ax\0\xff'
                )
            if not _asks_for_much_memory(bytes(damaged[:end])):
                name = f"{len(headers)} {bytes(damaged[:40])!r}"
                return self._request(f"damaged {name}", bytes(damaged), False, **headers)


def _without_data(body: bytes) -> bytes:
    request = json.loads(body)
    del request["inputs"][0]["data"]
    return json.dumps(request).encode()


def _asks_for_much_memory(body: bytes) -> bool:
    try:
        shape = json.loads(body)["inputs"][0]["shape"]
        return math.prod(abs(int(size)) for size in shape) > MOST_ELEMENTS
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, OverflowError):
        return False


class _GrpcMaker:
    def __init__(self, rng: random.Random, model: contract.ModelSpec, embedding_dim: int) -> None:
        self._rng = rng
        self._model = model
        self._shape = example_shape(model, embedding_dim)

    def _good(self) -> service_pb2.ModelInferRequest:
        (spec,) = self._model.inputs
        message = service_pb2.ModelInferRequest(model_name=self._model.name)
        tensor = message.inputs.add()
        tensor.name, tensor.datatype = spec.name, spec.datatype
        tensor.shape.extend(self._shape)
        message.raw_input_contents.append(bytes(4 * math.prod(self._shape)))
        return message

    def _request(
        self, name: str, change: Callable[[service_pb2.ModelInferRequest], object], must_fail=True
    ) -> GrpcRequest:
        message = self._good()
        change(message)
        return GrpcRequest(f"{self._model.name} {name}", message.SerializeToString(), must_fail)

    def all(self) -> Iterator[GrpcRequest]:
        size = 4 * math.prod(self._shape)
        for name in ("", "none", "x" * 100_000, "../x", "\0"):
            yield self._request(
                f"model {name[:9]!r}", lambda m, v=name: setattr(m, "model_name", v)
            )
        for version in ("2", "-1", "x", str(2**64)):
            yield self._request(
                f"version {version}", lambda m, v=version: setattr(m, "model_version", v)
            )
        for name in _WRONG_NAMES:
            yield self._request(
                f"name {name[:9]!r}", lambda m, v=name: setattr(m.inputs[0], "name", v)
            )
        for datatype in _WRONG_DATATYPES:
            if isinstance(datatype, str):
                yield self._request(
                    f"datatype {datatype[:9]!r}",
                    lambda m, v=datatype: setattr(m.inputs[0], "datatype", v),
                )
        for value in (0, -1, -(2**31), -(2**63), 2, 65, 2**31, 2**40, 2**62, 2**63 - 1):
            for axis in range(len(self._shape)):
                shape = list(self._shape)
                shape[axis] = value
                must_fail = not _is_one_image(shape)
                yield self._request(
                    f"shape {shape}", lambda m, v=shape: _set_shape(m, v), must_fail
                )
                yield self._request(
                    f"shape {shape}, typed contents",
                    lambda m, v=shape: _use_contents(_set_shape(m, v)),
                    must_fail,
                )
        for _ in range(20):
            shape = [
                self._rng.choice((0, 1, 2, 3, 4, 5, 65)) for _ in range(self._rng.randrange(8))
            ]
            if shape != self._shape:
                yield self._request(
                    f"shape {shape}",
                    lambda m, v=shape: _set_shape(m, v),
                    must_fail=not _is_one_image(shape),
                )
        for length in (0, 1, size - 1, size + 1, 2 * size, 2**25):
            yield self._request(f"{length} bytes", lambda m, v=length: _set_raw(m, [bytes(v)]))
        yield self._request("no contents", lambda m: _set_raw(m, []))
        yield self._request("contents twice", lambda m: _set_raw(m, [bytes(size)] * 2), False)
        yield self._request("no input", lambda m: m.ClearField("inputs"))
        yield self._request("the input twice", lambda m: m.inputs.append(m.inputs[0]))
        yield self._request("1,000 inputs", lambda m: m.inputs.extend(list(m.inputs) * 1000))
        for kind in ("bool", "int", "int64", "uint", "uint64", "fp64", "bytes"):
            value = [b"x"] if kind == "bytes" else [1]
            yield self._request(
                f"{kind}_contents",
                lambda m, k=kind, v=value: getattr(
                    _set_raw(m, []).inputs[0].contents, f"{k}_contents"
                ).extend(v * (size // 4)),
            )
        yield self._request(
            "raw and typed contents", lambda m: m.inputs[0].contents.fp32_contents.append(1)
        )
        yield self._request("unknown output", lambda m: setattr(m.outputs.add(), "name", "NONE"))
        yield self._request("output without a name", lambda m: m.outputs.add())
        for key in ("sequence_id", "priority", "timeout", "triton_x", "shared_memory_region"):
            for value in (-1, 2**62):
                yield self._request(
                    f"{key} {value}",
                    lambda m, k=key, v=value: setattr(m.parameters[k], "int64_param", v),
                    must_fail=False,
                )
        yield self._request(
            "unknown shared memory",
            lambda m: setattr(
                _set_raw(m, []).inputs[0].parameters["shared_memory_region"], "string_param", "x"
            ),
        )
        good = self._good().SerializeToString()
        for _ in range(30):
            cut = self._rng.randrange(1, len(good))
            yield GrpcRequest(f"{self._model.name} cut at byte {cut}", good[:cut])
            damaged = bytearray(good)
            damaged[self._rng.randrange(60)] ^= 1 << self._rng.randrange(8)
            yield GrpcRequest(
                f"{self._model.name} damaged {bytes(damaged[:30])!r}", bytes(damaged), False
            )


def _is_one_image(shape: list) -> bool:
    """Whether Triton's core drops the batch dimension, so that the request is one image."""
    return bool(shape) and isinstance(shape[0], int) and shape[0] % 2**32 == 0


def _set_shape(message: service_pb2.ModelInferRequest, shape: list[int]):
    del message.inputs[0].shape[:]
    message.inputs[0].shape.extend(shape)
    return message


def _set_raw(message: service_pb2.ModelInferRequest, contents: list[bytes]):
    del message.raw_input_contents[:]
    message.raw_input_contents.extend(contents)
    return message


def _use_contents(message: service_pb2.ModelInferRequest):
    values = np.frombuffer(message.raw_input_contents[0], np.float32)
    _set_raw(message, []).inputs[0].contents.fp32_contents.extend(values.tolist())
    return message


def _json_of_shape(model: contract.ModelSpec, shape: list[int]) -> HttpRequest:
    (spec,) = model.inputs
    tensor = {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": [0, 0, 0]}
    body = json.dumps({"inputs": [tensor]}).encode()
    return HttpRequest(f"{model.name} JSON shape {shape}", f"/v2/models/{model.name}/infer", body)


def _body(model: contract.ModelSpec, name: str, body: bytes, **headers: str) -> HttpRequest:
    path = f"/v2/models/{model.name}/infer"
    return HttpRequest(f"{model.name} {name}", path, body, headers)


# Each of these ends tritonserver 2.51.0 or the process of a model (doc/faults.md says how).
KILLERS = [
    _json_of_shape(contract.IMAGE_ENCODER, [2**40, 3, 1, 1]),
    _json_of_shape(contract.IMAGE_ENCODER, [1, 3, 2**62, 2**62]),
    _json_of_shape(contract.VECTOR_SIMILARITY, [1, 2**40]),
    _body(
        contract.IMAGE_ENCODER,
        "data nested 100,000 deep",
        b'{"inputs":[{"name":"INPUT__0","shape":[1,3,1,1],"datatype":"FP32","data":'
        + b"[" * 100_000 + b"0,0,0" + b"]" * 100_000 + b"}]}",
    ),
    _body(
        contract.VECTOR_SIMILARITY,
        "parameters nested 1,000,000 deep",
        b'{"parameters":' + b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000 + b',"inputs":[]}',
    ),
    _body(
        contract.IMAGE_ENCODER,
        "body in 1,000,000 chunks of a byte",
        b"1\r\n{\r\n" * 1_000_000 + b"0\r\n\r\n",
        **{"Transfer-Encoding": "chunked"},
    ),
]  # fmt: skip
