// What the vLLM connector reads of each step, in passes over vLLM's own lists. These have an
// element for each running request, of which few say anything, so one pass here costs a step less
// than two of the interpreter.
//
// A reference is taken to what a list holds before a call that may run others' code.
#include "client/python/src/bindings.h"

namespace kvm::python {
namespace {

using namespace nb::literals;

// Throws the Python error that a call has set.
[[noreturn]] void Failed() { throw nb::python_error(); }

// Adds what a request is given to `blocks`, and to the list of each group in `noted`, unless that
// is null.
void AddBlocks(PyObject* given, const nb::set& blocks, PyObject* noted) {
  if (PyTuple_Check(given) == 0) throw nb::type_error("blocks that a request is given are a tuple with a list for each group");
  const Py_ssize_t groups = PyTuple_Size(given);
  if (noted != nullptr && (PyTuple_Check(noted) == 0 || PyTuple_Size(noted) != groups))
    throw nb::value_error("what is noted has a list for each group");
  for (Py_ssize_t group = 0; group < groups; ++group) {
    PyObject* table = PyTuple_GetItem(given, group);
    PyObject* list = noted == nullptr ? nullptr : PyTuple_GetItem(noted, group);
    if (PyList_Check(table) == 0 || (list != nullptr && PyList_Check(list) == 0)) throw nb::type_error("the blocks of a group are a list");
    for (Py_ssize_t i = 0; i < PyList_Size(table); ++i) {
      const nb::object block = nb::borrow(PyList_GetItem(table, i));
      if (PySet_Add(blocks.ptr(), block.ptr()) != 0) Failed();
      if (list != nullptr && PyList_Append(list, block.ptr()) != 0) Failed();
    }
  }
}

// Whether the element says that blocks are given: not None, and not an empty tuple.
bool Gives(PyObject* given) { return given != Py_None && (PyTuple_Check(given) == 0 || PyTuple_Size(given) != 0); }

nb::tuple NoteGiven(const nb::list& request_ids, const nb::list& given_blocks, const nb::dict& waiting, const nb::set& not_waiting,
                    const nb::set& blocks) {
  const std::size_t count = nb::len(given_blocks);
  if (nb::len(request_ids) != count) throw nb::value_error("as many requests as there are elements of given blocks");
  const bool none_resumed = PySet_Size(not_waiting.ptr()) == 0;
  nb::list names, tables;
  for (std::size_t i = 0; i < count; ++i) {
    PyObject* element = PyList_GetItem(given_blocks.ptr(), static_cast<Py_ssize_t>(i));
    if (element == nullptr) Failed();
    if (!Gives(element)) continue;
    const nb::object given = nb::borrow(element);
    PyObject* name = PyList_GetItem(request_ids.ptr(), static_cast<Py_ssize_t>(i));
    if (name == nullptr) Failed();
    const nb::object request_id = nb::borrow(name);
    PyObject* noted = nullptr;
    const int resumed = none_resumed ? 0 : PySet_Contains(not_waiting.ptr(), request_id.ptr());
    if (resumed < 0) Failed();
    if (resumed == 0) {
      noted = PyDict_GetItemWithError(waiting.ptr(), request_id.ptr());
      if (noted == nullptr && PyErr_Occurred() != nullptr) Failed();
    }
    AddBlocks(given.ptr(), blocks, noted);
    if (noted == nullptr) {
      names.append(request_id);
      tables.append(given);
    }
  }
  return nb::make_tuple(names, tables);
}

// So many objects of the pool are fetched ahead: after a step the processor's caches hold few.
constexpr std::size_t kBlocksAhead = 8;

nb::list ContentsOf(const nb::list& pool, const nb::list& blocks) {
  static PyObject* const name = PyUnicode_InternFromString("block_hash");
  const std::size_t count = nb::len(blocks);
  const auto place = [&](std::size_t i) {
    PyObject* block = PyList_GetItem(blocks.ptr(), static_cast<Py_ssize_t>(i));
    const Py_ssize_t at = block == nullptr ? -1 : PyLong_AsSsize_t(block);
    if (at == -1 && PyErr_Occurred() != nullptr) Failed();
    return at;
  };
  nb::list contents;
  for (std::size_t i = 0; i < count + kBlocksAhead; ++i) {
    if (i < count) {
      PyObject* object = PyList_GetItem(pool.ptr(), place(i));
      if (object == nullptr) Failed();
      __builtin_prefetch(object);
    }
    if (i < kBlocksAhead) continue;
    PyObject* object = PyList_GetItem(pool.ptr(), place(i - kBlocksAhead));
    if (object == nullptr) Failed();
    const nb::object content = nb::steal(PyObject_GetAttr(nb::borrow(object).ptr(), name));
    if (!content.is_valid()) Failed();
    if (!content.is_none()) contents.append(content);
  }
  return contents;
}

}  // namespace

void BindSteps(nb::module_& module) {
  module.def("note_given", &NoteGiven, "request_ids"_a, "given"_a, "waiting"_a, "not_waiting"_a, "blocks"_a,
             nb::sig("def note_given(request_ids: list[str], given: list[tuple[list[int], ...] | None], waiting: dict[str, "
                     "tuple[list[int], ...]], not_waiting: set[str], blocks: set[int]) -> "
                     "tuple[list[str], list[tuple[list[int], ...]]]"),
             "`given`: what a step gives to each of `request_ids`, a list of blocks for each KV-cache group; None or (): nothing.\n"
             "Adds all blocks to `blocks`. Appends what a request is given to its lists in `waiting`, if it has any and is not in\n"
             "`not_waiting`. Returns the other requests that are given blocks, and what they are given. TypeError, ValueError:\n"
             "other types, lists of different lengths; some elements may have been noted.");
  module.def("contents_of", &ContentsOf, "pool"_a, "blocks"_a,
             nb::sig("def contents_of(pool: list[typing.Any], blocks: list[int]) -> list[typing.Any]"),
             "[pool[block].block_hash for block in blocks], without those that are None. IndexError: no such block.");
}

}  // namespace kvm::python
