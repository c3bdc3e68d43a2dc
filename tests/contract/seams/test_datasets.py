"""What we rely on in datasets."""

import copy
import inspect
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Json, LargeList, List, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher, generate_random_fingerprint, get_temporary_cache_files_directory

from tests.contract.seams.seam import Seam

CACHE, JSON = "deepfabric_trainer/prepare/cache.py", "deepfabric_trainer/json_columns.py"
ROWS = [{"number": number} for number in range(4)]


@Seam("datasets", "Dataset._fingerprint, which changes with the rows", CACHE, private=("_fingerprint",))
def test_fingerprints() -> None:
    dataset = Dataset.from_list(ROWS)
    assert isinstance(dataset._fingerprint, str)
    assert dataset.select([1, 0])._fingerprint != dataset._fingerprint
    assert dataset.map(lambda row: row, new_fingerprint="mine")._fingerprint == "mine"


@Seam(
    "datasets",
    "Dataset._indices, the mapping of a shuffled dataset",
    "deepfabric_trainer/grouping/keys.py",
    private=("_indices",),
)
def test_indices() -> None:
    dataset = Dataset.from_list(ROWS)
    assert dataset._indices is None
    assert dataset.select([2, 0])._indices.column(0).to_pylist() == [2, 0]
    assert isinstance(dataset.data.table, pa.Table)


@Seam("datasets", "Hasher.hash, random fingerprints, the temporary folder and the cache's", CACHE)
def test_caching(tmp_path: Path) -> None:
    assert Hasher.hash("a") == Hasher.hash("a") != Hasher.hash("b")
    assert generate_random_fingerprint() != generate_random_fingerprint()
    assert Path(get_temporary_cache_files_directory()).is_dir()
    assert Path(datasets.config.HF_DATASETS_CACHE)
    assert datasets.is_caching_enabled() in (True, False)
    assert Dataset.from_list(ROWS).cache_files == []
    file = tmp_path / "made.arrow"
    made = Dataset.from_list(ROWS).map(lambda row: row, cache_file_name=str(file), new_fingerprint="x")
    assert made.cache_files == [{"filename": str(file)}]


@Seam(
    "datasets",
    "Dataset._info, which a shallow copy can have for itself, with a description that is saved",
    "deepfabric_trainer/prepare/origin.py",
    private=("_info",),
)
def test_descriptions(tmp_path: Path) -> None:
    dataset = Dataset.from_list(ROWS)
    marked = copy.copy(dataset)
    marked._info = dataset.info.copy()
    marked._info.description = "marked"
    assert (dataset.info.description, marked.info.description) == ("", "marked")
    marked.save_to_disk(tmp_path)
    assert Dataset.load_from_disk(tmp_path).info.description == "marked"


@Seam(
    "datasets",
    "Dataset._get_cache_file_path(fingerprint), beside the files of the dataset",
    "deepfabric_trainer/prepare/dataset.py",
    private=("_get_cache_file_path",),
)
def test_where_a_result_is_kept(tmp_path: Path) -> None:
    made = Dataset.from_list(ROWS)
    assert Path(made._get_cache_file_path("x")).parent == Path(get_temporary_cache_files_directory())
    made = made.map(lambda row: row, cache_file_name=str(tmp_path / "made.arrow"), new_fingerprint="y")
    expected = tmp_path / "cache-x.arrow" if datasets.is_caching_enabled() else None
    assert expected is None or Path(made._get_cache_file_path("x")) == expected


@Seam("datasets", "the arguments of Dataset.map", "deepfabric_trainer/prepare/dataset.py")
def test_map() -> None:
    parameters = inspect.signature(Dataset.map).parameters
    wanted = {"batched", "batch_size", "with_indices", "remove_columns", "features", "num_proc", "desc", "fn_kwargs"}
    assert wanted <= set(parameters)
    streamed = Dataset.from_list(ROWS).to_iterable_dataset()
    mapped = streamed.map(lambda row: {"number": 7}, features=Features({"number": Value("int64")}))
    assert mapped.features == Features({"number": Value("int64")})
    assert isinstance(mapped, IterableDataset)


@Seam(
    "datasets",
    "format['type'], and Arrow tables for rows",
    "deepfabric_trainer/prepare/dataset.py",
    "deepfabric_trainer/prepare/lazy.py",
)
def test_formats() -> None:
    dataset = Dataset.from_list(ROWS)
    assert dataset.format["type"] is None
    assert dataset.with_format("torch").format["type"] == "torch"
    assert isinstance(dataset.with_format("arrow")[[0, 1]], pa.Table)


@Seam(
    "datasets",
    "columns of JSON: the type Json, from_list(on_mixed_types), decode_example",
    JSON,
    "deepfabric_trainer/rows.py",
    "deepfabric_trainer/tools.py",
)
def test_json_columns() -> None:
    mixed = Dataset.from_list([{"tools": [{"a": 1}]}, {"tools": [{"b": "x"}]}], on_mixed_types="use_json")
    assert "Json" in str(mixed.features["tools"])
    assert mixed[1] == {"tools": [{"b": "x"}]}
    assert Json().decode_example('{"a": 1}') == {"a": 1}
    given: Any = Dataset.from_list([{"value": '{"a": 7}'}], features=Features({"value": Json()}))
    assert given[0]["value"] == {"a": 7}
    assert List(Value("int32")).feature == LargeList(Value("int32")).feature


@Seam("datasets", "the error of a dataset that cannot be made", "deepfabric_trainer/rows.py")
def test_errors() -> None:
    assert issubclass(DatasetGenerationError, Exception)
