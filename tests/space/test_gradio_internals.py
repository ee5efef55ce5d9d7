"""Gradio internals that the Space relies on: each has one test, which fails with a plain message when Gradio changes.

| internal of Gradio 6.31 | used by | for |
|---|---|---|
| `state_holder.SessionState._update_config`, `_update_value_in_config` | `security/hardening.py` | no copies |
| `SessionState.__setitem__`, `Block._id` | `security/hardening.py` | one component per id in a session |
| `utils.error_payload`, `queueing.error_payload` | `security/hardening.py` | plain error messages |
| `queueing.traceback`, `routes.traceback` | `security/hardening.py` | no tracebacks in the log |
| `Blocks.fns`, `BlockFunction.fn` | `security/hardening.py` | wrapping of the page's functions |
| `Blocks.has_launched` | `security/hardening.py` | check of file locations in a mounted app |
| `Blocks.state_session_capacity`, `Blocks.api_open` | `security/hardening.py` | memory; no calls past the queue |
| `Blocks.get_api_info` | `security/hardening.py` | names of the endpoints |
| options of `mount_gradio_app` | `security/hardening.py` | features that stay off |
| `GRADIO_TEMP_DIR`, `GRADIO_ANALYTICS_MAX_EVENTS` | `serve.py` | folder of uploads; memory |
| `EventData._data` | `app.py` | the example that was clicked |
| routes | `security/middleware.py` | allowed paths |
| `orig_name`, `path` and `session_hash` in requests | `security/middleware.py` | sanitized JSON |

The page's JavaScript relies on Gradio's markup, which the browser tests check.
"""

import inspect
from pathlib import Path

import pytest

gradio = pytest.importorskip("gradio", reason="gradio is not installed")

from fastapi import FastAPI  # noqa: E402
from gradio import blocks, data_classes, processing_utils, queueing, routes, state_holder, utils  # noqa: E402

from hf_medtl.space.security.middleware import API, GET_PATHS, GET_PREFIXES, POST_PATHS  # noqa: E402


def changed(internal: str, used_by: str) -> str:
    """Return the message of a failure."""
    return f"Gradio {gradio.__version__} changed {internal}: adapt hf_medtl/space/{used_by}, then this test."


@pytest.fixture(scope="module")
def page() -> "gradio.Blocks":
    with gradio.Blocks(analytics_enabled=False) as page:
        text = gradio.Textbox()
        text.submit(lambda value: value, text, text, api_name="echo")
    return page


def test_sessions_copy_answers_in_two_methods():
    message = changed("how sessions copy answers (SessionState)", "security/hardening.py, keep_no_session_copies")
    for name, parameters in (("_update_config", 2), ("_update_value_in_config", 3)):
        method = getattr(state_holder.SessionState, name, None)
        assert callable(method), message
        # Another test may have replaced the method already; the replacement takes (state, key, value=None).
        assert len(inspect.signature(method).parameters) in {parameters, 3}, message
        assert f".{name}(" in inspect.getsource(blocks), message


def test_sessions_store_components_by_id():
    message = changed("SessionState.__setitem__ or Block._id", "security/hardening.py, keep_no_session_copies")
    assert list(inspect.signature(state_holder.SessionState.__setitem__).parameters)[1:] == ["key", "value"], message
    with gradio.Blocks(analytics_enabled=False):
        assert isinstance(gradio.Textbox()._id, int), message


def test_errors_are_sent_by_error_payload():
    message = changed("error_payload", "security/hardening.py, hide_tracebacks")
    assert list(inspect.signature(utils.error_payload).parameters) == ["error", "show_error"], message
    assert "error_payload(" in inspect.getsource(queueing), message
    assert "utils.error_payload(" in inspect.getsource(routes), message
    assert hasattr(queueing, "error_payload"), message


def test_tracebacks_are_printed_by_print_exc_alone():
    message = changed("how tracebacks are printed", "security/hardening.py, hide_tracebacks")
    for module in (queueing, routes):
        text = inspect.getsource(module)
        assert hasattr(module, "traceback"), message
        assert text.count("traceback.print_exc()") == text.count("traceback.") > 0, message


def test_functions_of_a_page_can_be_wrapped(page):
    message = changed("Blocks.fns", "security/hardening.py, secure_page")
    assert [event.fn("a") for event in page.fns.values()] == ["a"], message


def test_file_locations_are_checked_once_launched(page):
    message = changed("the check of file locations (Blocks.has_launched)", "security/hardening.py, secure_page")
    assert page.has_launched is False, message
    assert "has_launched" in inspect.getsource(processing_utils), message


def test_pages_have_a_session_capacity_and_a_closed_api(page):
    message = changed("Blocks.state_session_capacity or Blocks.api_open", "security/hardening.py, secure_page")
    assert isinstance(page.state_session_capacity, int), message
    assert isinstance(page.api_open, bool), message
    assert "state_session_capacity" in inspect.getsource(state_holder), message
    assert ".api_open" in inspect.getsource(routes), message


def test_queues_hold_events_with_their_requests(page):
    message = changed("Blocks._queue or the requests of its events", "security/hardening.py, count_waiting")
    assert page._queue.event_queue_per_concurrency_id == {}, message
    assert queueing.EventQueue("", 1).queue == [], message
    assert "request" in inspect.signature(queueing.Event).parameters, message
    assert "self.request = request" in inspect.getsource(queueing.Event.__init__), message


def test_endpoints_are_named_in_the_api_info(page):
    message = changed("Blocks.get_api_info", "security/hardening.py, secure_page")
    assert list(page.get_api_info()["named_endpoints"]) == ["/echo"], message


def test_features_that_stay_off_can_be_switched_off():
    options = {"run_history", "enable_monitoring", "mcp_server", "ssr_mode", "show_error", "footer_links"}
    missing = options - set(inspect.signature(gradio.mount_gradio_app).parameters)
    assert not missing, changed(f"options of mount_gradio_app ({missing})", "security/hardening.py, secure_page")


def test_environment_sets_upload_folder_and_event_table(monkeypatch, tmp_path):
    message = changed("GRADIO_TEMP_DIR or GRADIO_ANALYTICS_MAX_EVENTS", "serve.py, create_temp_folder")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert Path(utils.get_upload_folder()) == tmp_path, message
    assert "GRADIO_ANALYTICS_MAX_EVENTS" in inspect.getsource(queueing), message


def test_event_data_keeps_what_a_component_triggers():
    message = changed("EventData._data", "app.py, take_example")
    assert gradio.EventData(None, {"index": 3})._data == {"index": 3}, message


def test_allowed_routes_exist(page):
    with gradio.Blocks(analytics_enabled=False) as empty:
        gradio.Markdown("")
    app = gradio.mount_gradio_app(FastAPI(), empty, path="/", mcp_server=False, ssr_mode=False)
    mounted = next(route.app for route in app.routes if isinstance(getattr(route, "app", None), routes.App))
    routers = [getattr(route, "original_router", None) for route in mounted.routes]  # FastAPI keeps them whole
    all_routes = [*mounted.routes, *(route for router in routers if router for route in router.routes)]
    paths = {getattr(route, "path", "") for route in all_routes}
    for path in (GET_PATHS | POST_PATHS) - {"/manifest.json", API + "run/predict"}:
        assert path in paths, changed(f"the route {path}", "security/middleware.py")
    for prefix in (*GET_PREFIXES, API + "run/", API + "call/", API + "call/v2/"):
        assert any(path.startswith(prefix) for path in paths), changed(
            f"routes below {prefix}", "security/middleware.py"
        )


def test_requests_name_files_and_sessions_as_the_middleware_expects():
    message = changed("names of files and sessions in requests", "security/middleware.py, sanitize_json")
    assert {"path", "orig_name"} <= set(data_classes.FileData.model_fields), message
    assert "session_hash" in data_classes.PredictBody.model_fields, message
    assert hasattr(blocks.Blocks, "unload"), changed("Blocks.unload", "app.py, build_page")
