"""MCP tools: the endpoints of the Space for language models, by the Model Context Protocol over HTTP.

Gradio can serve its endpoints as tools, too, but as of 6.31 that downloads URLs given by a client, writes images to
disk, and returns images as text. Here an image comes within the call or was uploaded before, nothing is downloaded, and
images of an answer are returned as images. There are no sessions: each call stands alone.
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
from PIL import Image
from starlette.applications import Starlette

from hf_medtl.data.images import encode_image
from hf_medtl.errors import MedtlError
from hf_medtl.publish.sentences import NOTICE
from hf_medtl.space.api import Api, read_upload
from hf_medtl.space.registry import ModelRegistry
from hf_medtl.space.rendering import downscale
from hf_medtl.space.security.hardening import GENERIC_ERROR, error_location
from hf_medtl.space.security.middleware import API, MAX_MCP_BYTES, MCP_PATH
from hf_medtl.space.security.upload_store import is_inside
from hf_medtl.space.uploads import parse_upload

logger = logging.getLogger(__name__)
MAX_WAITING = 50  # calls; further ones are refused
UPLOADED_PATH = f"the path that was returned by a POST of its file to {API}upload"
NOTHING_ELSE = "Nothing else is read: no URL, and no other file."
IMAGE_ADVICE = f"Give an image as a data URI (data:image/png;base64,...), or {UPLOADED_PATH}. {NOTHING_ELSE}"
BATCH_ADVICE = f"Give for each image, or zip of images, {UPLOADED_PATH}. {NOTHING_ELSE}"


def create_mcp_app(registry: ModelRegistry, uploads: Path, host: str) -> Starlette:
    """Return an app with the single route MCP_PATH. An app that includes its route must run its lifespan, too.

    Args:
        registry: the models.
        uploads: folder where the middleware stores uploads.
        host: address that is listened on. If it is local, requests for another host name are refused.
    """
    from mcp.server import MCPServer
    from mcp.server.mcpserver import Image as McpImage
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations
    from pydantic import Field

    # Types of the tools' arguments: their descriptions become part of the tools' schemas.
    File = Annotated[str, Field(description=IMAGE_ADVICE)]
    Files = Annotated[list[str], Field(description=BATCH_ADVICE)]
    names = ", ".join(model.name for model in registry)
    Model = Annotated[str, Field(description=f"One of {names}; empty for the first one of the right task.")]

    def to_mcp_image(image: Image.Image) -> McpImage:
        return McpImage(data=encode_image(downscale(image)), format="png")  # small enough for a model to look at

    api = Api(registry, partial(_decode_image, uploads=uploads), to_mcp_image)
    limiter = anyio.CapacityLimiter(1)

    def to_content(answer: dict[str, Any]) -> list[Any]:
        """Return an answer as JSON with the names of its images, followed by the images."""
        values = [
            (key, item) for key, value in answer.items() for item in (value if isinstance(value, list) else [value])
        ]
        images = [(key, item) for key, item in values if isinstance(item, McpImage)]
        text = {key: value for key, value in answer.items() if key not in dict(images)}
        image_names = {"pictures": [name for name, _ in images]} if images else {}
        return [json.dumps(text | image_names), *(image for _, image in images)]

    def run(endpoint: Callable[..., dict[str, Any]], args: tuple[Any, ...]) -> list[Any] | str:
        """Return an answer, or an error message."""
        try:
            return to_content(endpoint(*args))
        except MedtlError as error:
            return str(error)
        except BaseException as error:  # one that is not an Exception would stop mcp, and all later calls
            logger.error(error_location(error))  # its text may contain a file name
            return GENERIC_ERROR

    async def call(endpoint: Callable[..., dict[str, Any]], *args: Any) -> list[Any]:
        if limiter.statistics().tasks_waiting >= MAX_WAITING:
            raise ToolError("The server is busy. Try again in a minute.")
        result = await anyio.to_thread.run_sync(run, endpoint, args, limiter=limiter)
        if isinstance(result, str):
            raise ToolError(result)
        return result

    async def classify(file: File, model: Model = "") -> list[Any]:
        return await call(api.classify, file, model)

    async def explain(file: File, model: Model = "", method: str = "", label: str = "") -> list[Any]:
        return await call(api.explain, file, model, method, label)

    async def segment(file: File, model: Model = "") -> list[Any]:
        return await call(api.segment, file, model)

    async def compare(file: File, one: Model, other: Model) -> list[Any]:
        return await call(api.compare, file, one, other)

    async def batch(files: Files, model: Model = "") -> list[Any]:
        def checked(files: list[str], model: str) -> dict[str, Any]:
            return api.batch([str(_uploaded_path(file, uploads, BATCH_ADVICE)) for file in files], model)

        return await call(checked, files, model)

    labels = "\n".join(f"{model.name}: {', '.join(model.predictor.labels)}" for model in registry)
    instructions = f"{NOTICE} {IMAGE_ADVICE}\n\nModels and their labels:\n{labels}"
    null = logging.NullHandler()
    logging.getLogger().addHandler(null)  # otherwise the package gives the root logger a handler of its own
    server = MCPServer("hf_medtl", instructions=instructions, subscriptions=False)  # the tools never change
    logging.getLogger().removeHandler(null)
    logging.getLogger("mcp").setLevel(logging.CRITICAL)  # it quotes what clients send
    annotations = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    for tool in (classify, explain, segment, compare, batch):
        description = f"{getattr(api, tool.__name__).__doc__} {NOTICE}"
        server.add_tool(tool, description=description, annotations=annotations, structured_output=False)
    return server.streamable_http_app(
        streamable_http_path=MCP_PATH,
        json_response=True,
        stateless_http=True,
        max_request_body_size=MAX_MCP_BYTES,
        host=host,
    )


def _decode_image(file: str, uploads: Path) -> Image.Image:
    """Return the image in a data URI, or of an uploaded file.

    Raises:
        MedtlError: it is neither, or not an image.
    """
    if not file.startswith("data:"):
        return read_upload(str(_uploaded_path(file, uploads)))
    head, _, text = file.partition(",")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error:
        content = b""
    if not content or not head.endswith(";base64"):
        raise MedtlError(IMAGE_ADVICE)
    return parse_upload("image", content).image()


def _uploaded_path(file: str, uploads: Path, advice: str = IMAGE_ADVICE) -> Path:
    """Return the path of an uploaded file, given as a path or as the URL that Gradio's upload tool makes of it.

    Raises:
        MedtlError: it is not an uploaded file; the message is `advice`.
    """
    path = file.rpartition(f"{API}file=")[2]
    if not is_inside(path, uploads):
        raise MedtlError(advice)
    return Path(path)
