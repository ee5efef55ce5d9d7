"""The actions of the page as tools of a language model, by the Model Context Protocol over HTTP.

Gradio can serve its endpoints so, too; as of 6.31 that fetches what a client names by URL, writes pictures to disk, and
gives those in an answer as text. Here a picture comes within the call, or was uploaded before; nothing is fetched, and
pictures of an answer come as such. There are no sessions: each call stands alone.
"""

import base64
import binascii
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from PIL import Image as Pictures
from starlette.applications import Starlette

from hf_medtl.errors import MedtlError
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space.api import Api, read
from hf_medtl.space.registry import Shelf
from hf_medtl.space.rendering import png, shrunk
from hf_medtl.space.security.middleware import API, TOOLS, TOOLS_BYTES, inside
from hf_medtl.space.server import SORRY, place
from hf_medtl.space.uploads import examined

logger = logging.getLogger(__name__)
WAITING = 50  # calls; one more is told to come later
UPLOADED = f"the path that a POST of its file to {API}upload answered"
ELSE = "Nothing else is read: no address, and no other file."
GIVE = f"Give a picture as a data URI (data:image/png;base64,...), or {UPLOADED}. {ELSE}"
GIVE_MANY = f"Give for each picture, or zip of pictures, {UPLOADED}. {ELSE}"


def tools(shelf: Shelf, uploads: Path, host: str) -> Starlette:
    """An app with one route, TOOLS; whoever adds that to another app must run the lifespan of this one, too.

    Args:
        shelf: the models.
        uploads: the folder in which the guard keeps what was uploaded.
        host: address that is listened at; if it is this machine's own, requests for another name are refused.
    """
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
    from pydantic import Field

    File = Annotated[str, Field(description=GIVE)]
    names = ", ".join(model.name for model in shelf)
    Model = Annotated[str, Field(description=f"One of {names}; empty for the first that fits.")]
    limiter = anyio.CapacityLimiter(1)
    # Small enough for a model to look at.
    api = Api(shelf, partial(picture_of, uploads=uploads), lambda its: Image(data=png(shrunk(its)), format="png"))

    def told(facts: dict[str, Any]) -> list[Any]:
        """An answer, each picture in it as one, with its name in the text."""
        each = [(key, its) for key, value in facts.items() for its in (value if isinstance(value, list) else [value])]
        pictures = [(key, its) for key, its in each if isinstance(its, Image)]
        rest = {key: value for key, value in facts.items() if key not in dict(pictures)}
        names = {"pictures": [name for name, _ in pictures]} if pictures else {}
        return [json.dumps(rest | names), *(its for _, its in pictures)]

    def done(act: Callable[..., dict[str, Any]], given: tuple[Any, ...]) -> list[Any] | str:
        """An answer, or a sentence that says what is wrong."""
        try:
            return told(act(*given))
        except MedtlError as error:
            return str(error)
        except BaseException as error:  # one that is no Exception would end mcp, and all calls after this one
            logger.error(place(error))  # its text may hold a file's name
            return SORRY

    async def ask(act: Callable[..., dict[str, Any]], *given: Any) -> list[Any]:
        if limiter.statistics().tasks_waiting >= WAITING:
            raise ToolError("Too many ask at the moment. Try again in a minute.")
        found = await anyio.to_thread.run_sync(done, act, given, limiter=limiter)
        if isinstance(found, str):
            raise ToolError(found)
        return found

    async def classify(file: File, model: Model = "") -> list[Any]:
        return await ask(api.classify, file, model)

    async def explain(file: File, model: Model = "", method: str = "", label: str = "") -> list[Any]:
        return await ask(api.explain, file, model, method, label)

    async def segment(file: File, model: Model = "") -> list[Any]:
        return await ask(api.segment, file, model)

    async def compare(file: File, one: Model, other: Model) -> list[Any]:
        return await ask(api.compare, file, one, other)

    async def batch(files: Annotated[list[str], Field(description=GIVE_MANY)], model: Model = "") -> list[Any]:
        def answered(files: list[str], model: str) -> dict[str, Any]:
            return api.batch([str(uploaded(file, uploads, GIVE_MANY)) for file in files], model)

        return await ask(answered, files, model)

    about = "\n".join(f"{model.name}: {', '.join(model.predictor.labels)}" for model in shelf)
    null = logging.NullHandler()
    logging.getLogger().addHandler(null)  # else the package gives the root logger a handler of its own
    said = f"{NOTICE} {GIVE}\n\nModels and their labels:\n{about}"
    server = MCPServer("hf_medtl", instructions=said, subscriptions=False)  # nothing changes, and nobody need listen
    logging.getLogger().removeHandler(null)
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it quotes what was sent
    harmless = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (classify, explain, segment, compare, batch):
        said = f"{getattr(api, tool.__name__).__doc__} {NOTICE}"
        server.add_tool(tool, description=said, annotations=harmless, structured_output=False)
    return server.streamable_http_app(
        streamable_http_path=TOOLS,
        json_response=True,
        stateless_http=True,
        max_request_body_size=TOOLS_BYTES,
        host=host,
    )


def picture_of(given: str, uploads: Path) -> Pictures.Image:
    """The picture in a data URI or of an upload.

    Raises:
        MedtlError: it is neither, or no picture.
    """
    if not given.startswith("data:"):
        return read(str(uploaded(given, uploads)))
    head, _, text = given.partition(",")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error:
        content = b""
    if not content or not head.endswith(";base64"):
        raise MedtlError(GIVE)
    return examined("picture", content).picture()


def uploaded(given: str, uploads: Path, advice: str = GIVE) -> Path:
    """The file of a path that an upload answered; Gradio's own tool makes an address of it.

    Raises:
        MedtlError: there is none; it says `advice`.
    """
    path = given.rpartition(f"{API}file=")[2]
    if not inside(path, uploads):
        raise MedtlError(advice)
    return Path(path)
