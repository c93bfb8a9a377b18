"""Compiled programs of one model: a batch of waveforms to hypotheses, on the devices that share it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pickle
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxasr import exported
from jaxasr.audio import SAMPLE_RATE
from jaxasr.caches import programs_kept
from jaxasr.devices import Policy, check_process, is_lost, policy, usual_settings
from jaxasr.errors import ConfigError, ModelError
from jaxasr.model_config import ModelConfig, Parameters
from jaxasr.process import return_freed_memory
from jaxasr.search import SearchConfig
from jaxasr.search.hypotheses import Hypotheses
from jaxasr.waiting import Wait

if TYPE_CHECKING:
    from jaxasr.model import AbstractModel

Shape = tuple[int, int]  # rows, samples
Step = Callable[..., Any]  # (state, *rows, blank_penalty=) -> rows
Rows = TypeVar("Rows")

COMPILED_AT_ONCE = 2  # XLA's passes over a program take one core, its code generation all of them
QUIET_SECONDS = 1.0  # for which parameters may be read before it is told


class _Promise(Future[jax.stages.Compiled]):
    """A program that is being made, and what to tell of it."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: of the longest clip that it is for."""
        super().__init__()
        self.wait = Wait(f"compiling for clips of up to {seconds:.3g} s: once for this machine")


class Programs:
    """One compiled program per shape of a batch, over one set of parameters. Threads may share it.

    It pickles: a function that reads parameters goes along if it pickles, else the parameters do, and programs are made
    anew. In a process that was forked after JAX was used it raises ModelError.

    `config`: what the model is. `abstract_model`: the model without numbers. `policy`: the types that it computes in.
    `compiled`: the programs by (rows, samples).
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Parameters | Callable[[], Parameters],
        *,
        search: SearchConfig,
        dtype: str = "float32",
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """`search`: how tokens are found. `params`: nested arrays, or a function that reads them, which is called in a
        thread: programs are compiled meanwhile. `devices`: the local devices that share each batch, all by default.
        """
        check_process()
        self.search = search
        self.policy: Policy = policy(dtype)
        self._chosen = devices is not None
        self.devices = list(devices) if devices is not None else jax.local_devices()
        self.config = config
        self.compiled: dict[Shape, jax.stages.Compiled] = {}
        self._steps: dict[int, jax.stages.Compiled] = {}
        mesh = Mesh(np.array(self.devices), ("batch",))
        self._mesh = mesh
        self._everywhere = NamedSharding(mesh, PartitionSpec())
        self._by_row = NamedSharding(mesh, PartitionSpec("batch"))
        self._lock = threading.RLock()
        # Held while a program is compiled, when others may run. More at once take longer and more memory.
        self._compiling = threading.Semaphore(COMPILED_AT_ONCE)
        self._promised: dict[Shape, _Promise] = {}  # by who compiles them at this moment
        self._params: Parameters | None = None  # on the devices
        self._given: Future[Parameters] | None = Future()  # as they were given, until they are on the devices
        self._reader: threading.Thread | None = None
        self._source = params if callable(params) else None
        if callable(params):
            # No daemon: a process that ends while TensorStore reads would abort.
            self._reader = threading.Thread(target=_fulfil, args=(self._given, params), name="jaxasr-params")
            self._reader.start()
        else:
            self._given.set_result(params)

    @functools.cached_property
    def abstract_model(self) -> AbstractModel:
        """The model without numbers, made where something must be traced."""
        from jaxasr.model import AbstractModel  # Flax, which takes long to import

        with usual_settings():
            return AbstractModel(self.config)

    def load(self) -> None:
        """Wait until the parameters have been read; raises what reading them raised."""
        given = self._given
        if given is not None:
            reading = Wait("reading the model's arrays")
            reading.note(awaited=True, long=not wait([given], QUIET_SECONDS).done)
            try:
                given.result()
            finally:
                reading.end()

    @property
    def params(self) -> Parameters:
        """The parameters in the types of the policy, on every device; waits until they have been read."""
        check_process()
        self.load()  # without the lock, which compilation needs meanwhile
        with self._lock:
            if self._given is not None:
                self._put(self._given.result())
            if self._params is None:
                raise ModelError("the recognizer is closed")
            return self._params

    def replace_params(self, params: Parameters) -> None:
        """Go on with other parameters of the same model; compiled programs stay."""
        check_process()
        with self._lock:
            self._put(params)
            self._source = None

    def _put(self, params: Parameters) -> None:
        with programs_kept(), usual_settings():
            self._params = self.policy.cast(params, lambda leaf: jax.device_put(leaf, self._everywhere))
        self._given = None

    def abstract_params(self) -> Parameters:
        """Shapes and types of `params`, known before the parameters are read."""
        abstract: Parameters = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._everywhere),
            jax.eval_shape(self.policy.cast, self.abstract_model.parameters),
        )
        return abstract

    def run(self, waveforms: np.ndarray, lengths: np.ndarray, blank_penalty: float = 0.0) -> Hypotheses:
        """Hypotheses of waveforms (B, S) float32 at 16 kHz, silence included, with lengths (B,) in samples.

        B must be a multiple of the number of devices. The result stays on the device.
        """
        program = self.compile(*waveforms.shape)
        with usual_settings():
            rows = jax.device_put((waveforms, lengths), self._by_row)
            found: Hypotheses = program(self.params, *rows, np.float32(blank_penalty))
        return found

    def compile(self, rows: int, samples: int) -> jax.stages.Compiled:
        """The program for batches of this shape: compiled once, then kept in `compiled`.

        It is traced where no earlier process has done so. What takes long is told through the log.
        """
        return self._compile((rows, samples), awaited=True)

    def compile_ahead(self, shapes: Iterable[Shape]) -> threading.Event:
        """Compile programs of (rows, samples) in a thread, in their order, while the caller runs others.

        The thread ends after the program that it is at when the event that is returned is set, or when the process
        ends. A fault that it meets is met again by who needs the program.
        """
        left = [shape for shape in dict.fromkeys(shapes) if shape not in self.compiled]
        stop = threading.Event()

        def work() -> None:
            with contextlib.suppress(Exception):
                for shape in left:
                    if stop.is_set() or not threading.main_thread().is_alive():
                        return
                    self._compile(shape, awaited=False)

        if left:  # no daemon: a process that ends while XLA compiles would abort
            threading.Thread(target=work, name="jaxasr-compile").start()
        return stop

    def is_kept(self, rows: int, samples: int) -> bool:
        """Whether `compile` finds the program in the cache folder, so that it takes a moment."""
        with programs_kept(), usual_settings():
            return exported.is_kept(*self._made_from(rows, samples))

    def _compile(self, shape: Shape, *, awaited: bool) -> jax.stages.Compiled:
        """`awaited`: somebody waits for it."""
        check_process()
        with self._lock:
            if self._params is None and self._given is None:
                raise ModelError("the recognizer is closed")
            if shape in self.compiled:
                return self.compiled[shape]
            promise = self._promised.get(shape)
            if mine := promise is None:
                audio = self.config.audio
                seconds = shape[1] / SAMPLE_RATE - audio.silence_before - audio.silence_after
                promise = self._promised[shape] = _Promise(seconds)
        promise.wait.note(awaited=awaited)
        if mine:
            try:
                with self._compiling, programs_kept(), usual_settings():
                    self.compiled[shape] = self._lower(*shape, lambda: promise.wait.note(long=True)).compile()
                return_freed_memory()  # a fifth of a gigabyte for a large model, needed once a program
                promise.set_result(self.compiled[shape])
            except BaseException as error:  # whatever it is, others wait for it
                promise.set_exception(error)
                raise
            finally:
                promise.wait.end()
                with self._lock:
                    del self._promised[shape]
        return promise.result()

    def _lower(self, rows: int, samples: int, anew: Callable[[], None]) -> jax.stages.Lowered:
        """`anew`: called where no earlier process has made the program."""

        def trace() -> tuple[Callable[..., Hypotheses], tuple[object, ...]]:
            arguments = (
                self.abstract_params(),
                jax.ShapeDtypeStruct((rows, samples), jnp.float32, sharding=self._by_row),
                jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=self._by_row),
                jax.ShapeDtypeStruct((), jnp.float32, sharding=self._everywhere),
            )
            return self._over_rows(self.recognize, 2), arguments

        return exported.lower(*self._made_from(rows, samples), trace, anew)

    def _made_from(self, rows: int, samples: int) -> tuple[ModelConfig, dict[str, object], Mesh]:
        """What tells a program from others."""
        config = dataclasses.replace(self.config, search=self.search)
        types = [str(self.policy.weights), str(self.policy.activations)]
        return config, {"types": types, "shape": [rows, samples]}, self._mesh

    def compile_step(self, slots: int, step: Callable[..., Any], rows: tuple[Any, ...]) -> Step:
        """The program of `step`(params, *rows, blank_penalty), whose results are rows again: made once for these slots.

        `rows`: trees of shapes whose first axis is divided among the devices; those of the first are overwritten.
        Unlike recognition it is traced in each process, but compiled once for a machine.
        """
        check_process()
        with self._lock:
            if slots not in self._steps:
                wait = Wait("compiling for streams: once for this machine")
                wait.note(awaited=True, long=True)
                try:
                    with programs_kept(), usual_settings():
                        placed = jax.tree.map(
                            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._by_row), rows
                        )
                        penalty = jax.ShapeDtypeStruct((), jnp.float32, sharding=self._everywhere)
                        program = jax.jit(self._over_rows(step, len(rows)), donate_argnums=1)
                        lowered = program.lower(self.abstract_params(), *placed, penalty)
                        self._steps[slots] = lowered.compile()
                finally:
                    wait.end()
            compiled = self._steps[slots]

        def run(state: Any, *others: Any, blank_penalty: float) -> Any:
            with usual_settings():
                return compiled(self.params, state, *self.put_rows(others), np.float32(blank_penalty))

        return run

    def put_rows(self, rows: Rows) -> Rows:
        """Arrays whose first axis is divided among the devices, put there."""
        with usual_settings():
            put: Rows = jax.device_put(rows, self._by_row)
        return put

    def _over_rows(self, function: Callable[..., Any], rows: int) -> Callable[..., Any]:
        """A function of parameters, `rows` trees with rows and a number, on each device with its share of the rows."""
        by_row = PartitionSpec("batch")
        return jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=(PartitionSpec(), *[by_row] * rows, PartitionSpec()),
            out_specs=by_row,
            check_vma=False,
        )

    def close(self) -> None:
        """Wait until the parameters have been read, then let go of them and of the programs. May be called again."""
        if is_lost():
            return  # whose lock a thread of the parent may hold for ever
        if self._reader is not None:
            self._reader.join()
        with self._lock, contextlib.ExitStack() as stack:
            for _ in range(COMPILED_AT_ONCE):
                stack.enter_context(self._compiling)
            self._params = self._given = self._source = None
            self.compiled, self._steps = {}, {}

    def __reduce__(self) -> tuple[Callable[..., Programs], tuple[object, ...]]:
        params: Parameters | Callable[[], Parameters] | None = self._source if _pickles(self._source) else None
        if params is None:
            with usual_settings():
                params = jax.device_get(self.params)
        devices = [(device.platform, device.id) for device in self.devices] if self._chosen else None
        return _remake, (self.config, params, self.search, self.policy.weights.name, devices)

    def recognize(
        self, params: Parameters, waveforms: jax.Array, lengths: jax.Array, blank_penalty: jax.Array
    ) -> Hypotheses:
        """What a program computes, to be traced: parameters in the policy's types, waveforms (B, S), lengths (B,)."""
        model = self.abstract_model.fill(params)
        encoded, encoded_lengths = model.encode(waveforms, lengths, self.policy.activations)
        return model.search(encoded, encoded_lengths, self.search, blank_penalty)


def _remake(
    config: ModelConfig,
    params: Parameters | Callable[[], Parameters],
    search: SearchConfig,
    dtype: str,
    devices: list[tuple[str, int]] | None,
) -> Programs:
    """Programs out of a pickle; ConfigError where this machine lacks one of the devices (platform, id) they ran on."""
    if devices is None:
        return Programs(config, params, search=search, dtype=dtype)
    here = {(device.platform, device.id): device for device in jax.local_devices()}
    absent = [f"{platform}:{number}" for platform, number in devices if (platform, number) not in here]
    if absent:
        raise ConfigError(f"the recognizer was made for {', '.join(absent)}, which is not here: leave out devices")
    return Programs(config, params, search=search, dtype=dtype, devices=[here[device] for device in devices])


def _pickles(source: object) -> bool:
    """Whether a function can be sent to another process: a named one can, one inside another cannot."""
    try:
        return source is not None and bool(pickle.dumps(source))
    except (pickle.PicklingError, AttributeError, TypeError):
        return False


def _fulfil(future: Future[Parameters], read: Callable[[], Parameters]) -> None:
    try:
        with usual_settings():
            params = read()
        future.set_result(params)
    except BaseException as error:  # whatever it is, it belongs to who waits for the parameters
        future.set_exception(error)
