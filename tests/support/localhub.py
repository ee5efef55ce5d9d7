"""A small writable Hub on a local directory: an emulation for tests on the loopback address, not the Hub.

Every repo is a real bare git repository (git hashes, branches, tags, history);
LFS objects are files named by their sha256.  Needs: starlette, uvicorn, pyyaml, git.
Run:  python localhub.py --root DIR --port PORT [--token hf_ci] [--user ci-user]
"""

import argparse
import base64
import fnmatch
import hashlib
import json
import os
import re
import shutil
import struct
import subprocess
import threading
import time
import uuid
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

LFS_THRESHOLD = 10 * 1024 * 1024  # as on the Hub: text above 10 MiB, and every binary matched below
GITATTRIBUTES = "".join(
    f"*{e} filter=lfs diff=lfs merge=lfs -text\n"
    for e in [
        ".7z",
        ".arrow",
        ".bin",
        ".bz2",
        ".ckpt",
        ".ftz",
        ".gz",
        ".h5",
        ".joblib",
        ".mlmodel",
        ".model",
        ".msgpack",
        ".npy",
        ".npz",
        ".onnx",
        ".ot",
        ".parquet",
        ".pb",
        ".pickle",
        ".pkl",
        ".pt",
        ".pth",
        ".rar",
        ".safetensors",
        ".tar",
        ".tflite",
        ".tgz",
        ".wasm",
        ".xz",
        ".zip",
        ".zst",
        ".jpg",
        ".jpeg",
        ".png",
        ".webp",
    ]
)
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


async def torn():
    """Yield a body whose connection breaks off."""
    yield b"x"
    raise ConnectionResetError("asked for by a test")


class HubError(Exception):
    def __init__(self, status, code, message):
        self.status, self.code, self.message = status, code, message


def git(repo, *args, data=None, check=True):
    p = subprocess.run(["git", "-C", str(repo), *args], input=data, capture_output=True)
    if check and p.returncode:
        raise HubError(500, "GitError", p.stderr.decode(errors="replace"))
    return p.stdout


class Hub:
    def __init__(self, root, user, token):
        self.root, self.user, self.token = Path(root), user, token
        self.lock, self.log, self.faults = threading.Lock(), [], []
        self.multipart, self.xet, self.xet_map, self.collections = 0, "", {}, {}
        for d in ("repos", "lfs", "tmp"):
            (self.root / d).mkdir(parents=True, exist_ok=True)

    # ---- storage -----------------------------------------------------------------
    def path(self, kind, repo_id):
        return self.root / "repos" / kind / (repo_id + ".git")

    def meta(self, kind, repo_id):
        return json.loads((self.path(kind, repo_id) / "localhub.json").read_text())

    def repo(self, kind, repo_id, authed):
        p = self.path(kind, repo_id)
        if not (p / "HEAD").exists() or (self.meta(kind, repo_id)["private"] and not authed):
            raise HubError(404 if authed else 401, "RepoNotFound", "Repository not found")
        return p

    def rev(self, repo, rev):
        for ref in (f"refs/heads/{rev}", rev if rev.startswith("refs/") else f"refs/tags/{rev}", rev):
            sha = git(repo, "rev-parse", "-q", "--verify", ref + "^{commit}", check=False).decode().strip()
            if sha:
                return sha
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {rev}")

    def lfs_path(self, oid):
        return self.root / "lfs" / oid[:2] / oid

    def xet_hash(self, oid):
        """The Xet file hash for a sha256, read from the shards (MDB format) that hf_xet left in the local CAS."""
        if not self.xet.startswith("local://"):
            return None
        if oid not in self.xet_map:
            for shard in Path(self.xet[8:]).glob("xet/xorbs/shards/*.mdb"):
                b, i = shard.read_bytes(), 48
                while b[i : i + 32] != b"\xff" * 32:
                    flags, n = struct.unpack_from("<II", b, i + 32)
                    file_hash, i = b[i : i + 32], i + 48 * (1 + n + (n if flags >> 31 & 1 else 0))
                    if flags >> 30 & 1:
                        self.xet_map[hexhash(b[i : i + 32])] = hexhash(file_hash)
                        i += 48
        return self.xet_map.get(oid)

    def materialise(self, oid, dest):
        import hf_xet

        tmp, until = self.root / "tmp" / uuid.uuid4().hex, int(time.time()) + 3600
        session = hf_xet.XetSession()
        with session.new_file_download_group(endpoint=self.xet, token="t", token_expiry_unix_secs=until) as group:
            group.start_download_file(hf_xet.XetFileInfo(self.xet_hash(oid)), str(tmp))
        if hashlib.sha256(tmp.read_bytes()).hexdigest() != oid:
            raise HubError(500, "Corrupt", "Xet content does not match its sha256")
        dest.parent.mkdir(parents=True, exist_ok=True)
        os.replace(tmp, dest)

    def pointer(self, blob):
        m = re.match(rb"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n$", blob)
        return m and {"oid": m[1].decode(), "size": int(m[2]), "pointerSize": len(blob)}

    def tree(self, repo, sha, path="", recursive=True):
        args = ["ls-tree", "-l", "-z", "--full-tree"] + (["-r", "-t"] if recursive else []) + [sha]
        if path:
            args += ["--", path.rstrip("/") + "/"]
        out = []
        for line in git(repo, *args).decode().split("\0")[:-1]:
            info, name = line.split("\t", 1)
            _, typ, oid, size = info.split()
            if typ == "tree":
                if path and (path.rstrip("/") + "/").startswith(name + "/"):
                    continue
                out.append({"type": "directory", "oid": oid, "size": 0, "path": name})
            else:
                out.append(self.file_entry(repo, oid, int(size), name))
        return out

    def file_entry(self, repo, oid, size, name):
        e = {"type": "file", "oid": oid, "size": size, "path": name}
        if size < 200:
            lfs = self.pointer(git(repo, "cat-file", "blob", oid))
            if lfs:
                e.update(size=lfs["size"], lfs=lfs)
        return e

    def entry(self, repo, sha, path):
        line = git(repo, "ls-tree", "-l", "-z", "--full-tree", sha, "--", path.rstrip("/")).decode().rstrip("\0")
        if not line:
            return None
        _, typ, oid, size = line.split("\t", 1)[0].split()
        if typ == "tree":
            return {"type": "directory", "oid": oid, "size": 0, "path": path}
        return self.file_entry(repo, oid, int(size), path)

    def commit(self, repo, branch, message, adds, deletes=(), parent=None):
        ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
        msg = message.encode()
        buf = [
            f"commit {ref}\ncommitter {self.user} <{self.user}@localhub> {int(time.time())} +0000\n"
            f"data {len(msg)}\n".encode()
            + msg
            + b"\n"
        ]
        if parent:
            buf.append(f"from {parent}\n".encode())
        for p in deletes:
            buf.append(b"D " + p.encode() + b"\n")
        for p, content in adds.items():
            buf.append(b"M 100644 inline " + p.encode() + b"\ndata %d\n" % len(content) + content + b"\n")
        git(repo, "fast-import", "--quiet", "--date-format=raw", data=b"".join(buf) + b"done\n")
        return git(repo, "rev-parse", ref).decode().strip()

    # ---- endpoints ---------------------------------------------------------------
    def create(self, q):
        kind = q.get("type", "model") + "s"
        repo_id = f"{q.get('organization') or self.user}/{q['name']}"
        p, url = self.path(kind, repo_id), f"{self.base}/{PREFIX[kind]}{repo_id}"
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) or ".." in repo_id:
            raise HubError(400, "BadRequest", "Invalid repo name")
        with self.lock:
            if (p / "HEAD").exists():
                return JSONResponse({"error": f"You already created this {kind[:-1]} repo", "url": url}, 409)
            p.mkdir(parents=True)
            git(p, "init", "-q", "--bare", "-b", "main")
            private = q.get("visibility") == "private" or bool(q.get("private"))
            (p / "localhub.json").write_text(json.dumps({"private": private, "sdk": q.get("sdk"), "created": now()}))
            first = {".gitattributes": GITATTRIBUTES.encode()}
            if kind == "spaces":
                first["README.md"] = (f"---\ntitle: {q['name']}\nsdk: {q['sdk']}\napp_file: app.py\n---\n").encode()
            self.commit(p, "main", "initial commit", first)
        return JSONResponse({"url": url, "name": repo_id, "id": uuid.uuid4().hex[:24]})

    def preupload(self, repo, rev, q):
        sha, files = self.rev(repo, rev), []
        attrs = self.entry(repo, sha, ".gitattributes")
        lfs = (
            [
                l.split()[0]
                for l in git(repo, "cat-file", "blob", attrs["oid"]).decode().splitlines()
                if "filter=lfs" in l
            ]
            if attrs
            else []
        )
        ignore = [l.strip() for l in q.get("gitIgnore", "").splitlines() if l.strip() and not l.startswith("#")]
        for f in q["files"]:
            base = f["path"].rsplit("/", 1)[-1]
            big = any(fnmatch.fnmatch(base, g) or fnmatch.fnmatch(f["path"], g) for g in lfs)
            big = big or f["size"] > LFS_THRESHOLD or b"\0" in base64.b64decode(f.get("sample") or "")
            e = self.entry(repo, sha, f["path"])
            files.append(
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if big else "regular",
                    "shouldIgnore": any(fnmatch.fnmatch(base, g) for g in ignore),
                    "oid": (e.get("lfs") or e)["oid"] if e and e["type"] == "file" else None,
                }
            )
        return JSONResponse({"files": files, "commitOid": sha})

    def do_commit(self, kind, repo_id, repo, rev, body):
        head, adds, dels = {}, {}, []
        for line in body.splitlines():
            item = json.loads(line)
            k, v = item["key"], item["value"]
            if k == "header":
                head = v
                continue
            if ".." in v["path"].split("/") or v["path"].startswith("/") or "\n" in v["path"]:
                raise HubError(400, "BadRequest", "bad path")
            if k == "file":
                adds[v["path"]] = (
                    base64.b64decode(v["content"]) if v.get("encoding") == "base64" else v["content"].encode()
                )
            elif k == "lfsFile":
                f = self.lfs_path(v["oid"])
                if not f.exists() and not self.xet_hash(v["oid"]):
                    raise HubError(400, "BadRequest", f"LFS object {v['oid']} was never uploaded")
                size = f.stat().st_size if f.exists() else v["size"]
                adds[v["path"]] = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{v['oid']}\nsize {size}\n".encode()
                )
            elif k in ("deletedFile", "deletedFolder"):
                dels.append(v["path"].rstrip("/"))
            else:
                raise HubError(400, "BadRequest", f"unknown operation {k}")
        with self.lock:
            parent = self.rev(repo, rev)
            if head.get("parentCommit") and not parent.startswith(head["parentCommit"]):
                raise HubError(412, "Conflict", "A commit has happened since. Please refresh and try again.")
            for d in dels:
                if not self.entry(repo, parent, d):
                    raise HubError(404, "EntryNotFound", f"A file with this name doesn't exist: {d}")
            if "README.md" in adds and card_errors(adds["README.md"].decode()):
                raise HubError(400, "BadRequest", "Invalid metadata in README.md")
            msg = head.get("summary", "") + ("\n\n" + head["description"] if head.get("description") else "")
            sha = self.commit(repo, rev, msg, adds, dels, parent)
        return JSONResponse(
            {
                "success": True,
                "commitOid": sha,
                "hookOutput": "",
                "commitUrl": f"{self.base}/{PREFIX[kind]}{repo_id}/commit/{sha}",
            }
        )

    def info(self, kind, repo_id, repo, rev, query):
        sha, meta = self.rev(repo, rev), self.meta(kind, repo_id)
        files, card = self.tree(repo, sha), self.entry(repo, sha, "README.md")
        data = card_data(git(repo, "cat-file", "blob", card["oid"]).decode(errors="replace")) if card else {}
        when = git(repo, "log", "-1", "--format=%cI", sha).decode().strip()
        sib = [
            {
                "rfilename": f["path"],
                **(
                    {
                        "size": f["size"],
                        "blobId": f["oid"],
                        **(
                            {"lfs": {"sha256": f["lfs"]["oid"], **{k: f["lfs"][k] for k in ("size", "pointerSize")}}}
                            if "lfs" in f
                            else {}
                        ),
                    }
                    if "blobs" in query
                    else {}
                ),
            }
            for f in files
            if f["type"] == "file"
        ]
        d = {
            "_id": hashlib.md5(repo_id.encode()).hexdigest()[:24],
            "id": repo_id,
            "author": repo_id.split("/")[0],
            "sha": sha,
            "private": meta["private"],
            "disabled": False,
            "gated": False,
            "downloads": 0,
            "likes": 0,
            "createdAt": meta["created"],
            "lastModified": iso(when),
            "tags": data.get("tags") or [],
            "cardData": data,
            "siblings": sib,
            "usedStorage": sum(f["size"] for f in files),
        }
        if kind == "models":
            d |= {
                "modelId": repo_id,
                "library_name": data.get("library_name"),
                "pipeline_tag": data.get("pipeline_tag"),
            }
        if kind == "spaces":
            d |= {
                "sdk": meta["sdk"],
                "runtime": {"stage": "NO_APP_FILE", "hardware": {"current": None, "requested": None}},
            }
        return JSONResponse(d)

    def resolve(self, kind, repo_id, repo, rev, path, request):
        sha = self.rev(repo, rev)
        e = self.entry(repo, sha, path)
        if not e or e["type"] != "file":
            return JSONResponse(
                {"error": "Entry not found"},
                404,
                {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found", "X-Repo-Commit": sha},
            )
        h = {
            "X-Repo-Commit": sha,
            "Accept-Ranges": "bytes",
            "ETag": f'"{e["oid"]}"',
            "Content-Disposition": f"inline; filename*=UTF-8''{quote(os.path.basename(path))}",
        }
        if "lfs" in e:  # the Hub answers 302 to its CDN, with the linked file's etag and size
            h |= {
                "X-Linked-Etag": f'"{e["lfs"]["oid"]}"',
                "X-Linked-Size": str(e["lfs"]["size"]),
                "Location": f"{self.cdn}/__cdn/{e['lfs']['oid']}",
            }
            if xet := self.xet_hash(e["lfs"]["oid"]):
                link = f'<{self.base}/api/{kind}/{repo_id}/xet-read-token/{sha}>; rel="xet-auth"'
                h |= {"X-Xet-Hash": xet, "Link": link}
            return Response(status_code=302, headers=h)
        blob = git(repo, "cat-file", "blob", e["oid"])
        m = re.match(r"bytes=(\d+)-(\d*)$", request.headers.get("range", ""))
        if m:
            a, b = int(m[1]), min(int(m[2] or len(blob) - 1), len(blob) - 1)
            if a >= len(blob):
                return Response(status_code=416, headers={"Content-Range": f"bytes */{len(blob)}"})
            return Response(
                blob[a : b + 1], 206, h | {"Content-Range": f"bytes {a}-{b}/{len(blob)}"}, "application/octet-stream"
            )
        return Response(blob, 200, h, "text/plain; charset=utf-8")

    def lfs_batch(self, kind, repo_id, q):
        objs = []
        for o in q["objects"]:
            r = {"oid": o["oid"], "size": o["size"]}
            if q["operation"] == "download":
                r["actions"] = {"download": {"href": f"{self.base}/__cdn/{o['oid']}"}}
            elif not self.lfs_path(o["oid"]).exists():
                up = {"href": f"{self.base}/__lfs/{o['oid']}"}
                if self.multipart and o["size"] > self.multipart and "multipart" in q["transfers"]:
                    parts = range(1, 1 + -(-o["size"] // self.multipart))
                    urls = {f"{i:05d}": f"{self.base}/__lfs-part/{o['oid']}/{i}" for i in parts}
                    header = {"chunk_size": str(self.multipart)} | urls
                    up = {"href": f"{self.base}/__lfs-complete/{o['oid']}", "header": header}
                r["actions"] = {"upload": up, "verify": {"href": f"{self.base}/__lfs-verify"}}
            objs.append(r)
        return JSONResponse({"transfer": "basic", "objects": objs}, media_type="application/vnd.git-lfs+json")

    async def store(self, request, oid, dest, check=True):
        tmp, h = self.root / "tmp" / uuid.uuid4().hex, hashlib.sha256()
        with open(tmp, "wb") as f:
            async for chunk in request.stream():
                h.update(chunk)
                f.write(chunk)
        if check and h.hexdigest() != oid:
            tmp.unlink()
            raise HubError(400, "BadRequest", "content does not match its oid")
        dest.parent.mkdir(parents=True, exist_ok=True)
        os.replace(tmp, dest)
        return Response(status_code=200, headers={"ETag": f'"{h.hexdigest()}"'})

    # ---- dispatch (on the raw path: revisions arrive percent-encoded, e.g. refs%2Fpr%2F1) ------------
    async def handle(self, request):
        self.base = f"http://{request.headers['host']}"
        self.cdn = self.base.replace("127.0.0.1", "localhost")  # another host name, so the client sees a CDN
        raw = request.scope["raw_path"].decode().split("?")[0]
        if raw == "/__log":
            return JSONResponse(self.log)
        if raw == "/__fail":  # a list of {"path": part of it, "status": 0 to cut the connection, "times": n, "headers"}
            self.faults = await request.json()
            return Response()
        if raw == "/__set":  # any of token, multipart (bytes of a part), xet (address of a CAS)
            vars(self).update(await request.json())
            return Response()
        for fault in self.faults:
            if fault["path"] in raw and fault["times"]:
                fault["times"] -= 1
                if fault["status"]:
                    body = {"error": "asked for by a test"}
                    return JSONResponse(body, fault["status"], fault.get("headers"))
                async for _ in request.stream():  # cut the connection in the middle of a longer body
                    break
                return StreamingResponse(torn(), headers={"Content-Length": "1000"})
        try:
            resp = await self.route(request, request.method, raw)
        except HubError as e:
            resp = JSONResponse({"error": e.message}, e.status, {"X-Error-Code": e.code, "X-Error-Message": e.message})
        resp.headers["X-Request-Id"] = uuid.uuid4().hex
        self.log.append(
            [
                request.method,
                str(request.url)[len(self.base) :][:200],
                resp.status_code,
                request.headers.get("user-agent", "")[:40],
            ]
        )
        return resp

    async def route(self, request, method, raw):
        seg = [unquote(s) for s in raw.strip("/").split("/")]
        authed = request.headers.get("authorization") == f"Bearer {self.token}"
        query = request.query_params

        def need_write():
            if not authed:
                raise HubError(401, "Unauthorized", "Invalid username or password.")

        # -- blobs
        if seg[0] == "__cdn":
            f = self.lfs_path(seg[1])
            if not f.exists() and self.xet_hash(seg[1]):  # plain HTTP for content that came in through Xet
                await run_in_threadpool(self.materialise, seg[1], f)
            if not f.exists():
                raise HubError(404, "EntryNotFound", "no such object")
            return FileResponse(f, headers={"ETag": f'"{seg[1]}"'}, media_type="application/octet-stream")
        if seg[0] == "__lfs" and method == "PUT":
            return await self.store(request, seg[1], self.lfs_path(seg[1]))
        if seg[0] == "__lfs-part" and method == "PUT":
            return await self.store(request, "", self.root / "tmp" / f"{seg[1]}.{int(seg[2])}", check=False)
        if seg[0] == "__lfs-complete":
            parts = [self.root / "tmp" / f"{seg[1]}.{part['partNumber']}" for part in (await request.json())["parts"]]
            content = b"".join(part.read_bytes() for part in parts)
            if hashlib.sha256(content).hexdigest() != seg[1]:
                raise HubError(400, "BadRequest", "content does not match its oid")
            self.lfs_path(seg[1]).parent.mkdir(parents=True, exist_ok=True)
            self.lfs_path(seg[1]).write_bytes(content)
            return JSONResponse({})
        if seg[0] == "__lfs-verify":
            q = await request.json()
            f = self.lfs_path(q["oid"])
            ok = f.exists() and f.stat().st_size == q["size"]
            return JSONResponse({} if ok else {"error": "missing"}, 200 if ok else 404)
        # -- git-lfs batch:  /[datasets/|spaces/]ns/name.git/info/lfs/objects/batch
        m = re.fullmatch(r"(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", "/".join(seg))
        if m:
            need_write()
            self.repo(m[1] or "models", m[2], authed)
            return self.lfs_batch(m[1] or "models", m[2], await request.json())
        # -- files:  /[datasets/|spaces/]ns/name/(resolve|raw)/rev/path
        kind, rest = (seg[0], seg[1:]) if seg[0] in ("datasets", "spaces") else ("models", seg)
        if len(rest) >= 5 and rest[2] in ("resolve", "raw"):
            repo_id = "/".join(rest[:2])
            return self.resolve(kind, repo_id, self.repo(kind, repo_id, authed), rest[3], "/".join(rest[4:]), request)
        if seg[0] != "api":
            raise HubError(404, "NotFound", "Sorry, we can't find the page you are looking for.")
        # -- API without a repo
        if seg[1] == "whoami-v2":
            need_write()
            return JSONResponse(
                {
                    "type": "user",
                    "id": "1",
                    "name": self.user,
                    "fullname": self.user,
                    "orgs": [],
                    "isPro": False,
                    "auth": {"type": "access_token", "accessToken": {"displayName": "ci", "role": "write"}},
                }
            )
        if seg[1:] == ["repos", "create"]:
            need_write()
            return self.create(await request.json())
        if seg[1:] == ["repos", "delete"]:
            need_write()
            q = await request.json()
            shutil.rmtree(
                self.repo(q.get("type", "model") + "s", f"{q.get('organization') or self.user}/{q['name']}", authed)
            )
            return JSONResponse({})
        if seg[1] == "validate-yaml":
            errors = card_errors((await request.json())["content"])
            return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)
        if seg[1] == "collections":
            if method == "POST":
                need_write()
            return self.collection(seg[2:], await request.json() if method == "POST" else None, authed)
        if seg[1] not in PREFIX:
            raise HubError(404, "NotFound", "unknown API")
        kind = seg[1]
        if len(seg) == 2:
            ids = [
                str(p.relative_to(self.root / "repos" / kind))[:-4]
                for p in sorted((self.root / "repos" / kind).glob("*/*.git"))
            ]
            return JSONResponse(
                [
                    {"id": i, "modelId": i, "private": False, "tags": []}
                    for i in ids
                    if i.startswith((query.get("author") or i.split("/")[0]) + "/") and query.get("search", "") in i
                ]
            )
        repo_id, verb, args = "/".join(seg[2:4]), seg[4:5], seg[5:]
        repo = self.repo(kind, repo_id, authed)
        if not verb:
            return self.info(kind, repo_id, repo, "main", query)
        verb = verb[0]
        if verb == "revision":
            return self.info(kind, repo_id, repo, args[0], query)
        if verb == "tree":
            sha, path = self.rev(repo, args[0]), "/".join(args[1:])
            e = path and self.entry(repo, sha, path)
            if path and (not e or e["type"] == "file"):
                raise HubError(404, "EntryNotFound", f"{path} does not exist on {args[0]}")
            items = self.tree(repo, sha, path, query.get("recursive", "").lower() in ("true", "1"))
            return JSONResponse(self.expand(repo, sha, items, query.get("expand")))
        if verb == "paths-info":
            q = parse_qs((await request.body()).decode())
            sha = self.rev(repo, args[0])
            items = [e for e in (self.entry(repo, sha, p) for p in q.get("paths", [])) if e]
            return JSONResponse(self.expand(repo, sha, items, q.get("expand", [""])[0]))
        if verb == "refs":
            refs = [
                r.split()
                for r in git(repo, "for-each-ref", "--format=%(refname) %(objectname) %(*objectname)")
                .decode()
                .splitlines()
            ]

            def of(p):
                return [
                    {"name": r[0][len(p) :], "ref": r[0], "targetCommit": r[-1]} for r in refs if r[0].startswith(p)
                ]

            return JSONResponse(
                {
                    "branches": of("refs/heads/"),
                    "tags": of("refs/tags/"),
                    "converts": [],
                    "pullRequests": of("refs/pr/"),
                }
            )
        if verb == "commits":
            out = (
                git(repo, "log", "--format=%H%x1f%cI%x1f%s%x1f%b%x1e", self.rev(repo, args[0]))
                .decode()
                .split("\x1e")[:-1]
            )
            return JSONResponse(
                [
                    dict(id=i.strip(), date=iso(d), title=t, message=b.strip(), authors=[{"user": self.user}])
                    for i, d, t, b in (c.split("\x1f") for c in out)
                ]
            )
        if verb == "preupload":
            need_write()
            return self.preupload(repo, args[0], await request.json())
        if verb == "commit" and method == "POST":
            need_write()
            return self.do_commit(kind, repo_id, repo, args[0], await request.body())
        if verb in ("branch", "tag"):
            need_write()
            ref = f"refs/{'heads' if verb == 'branch' else 'tags'}/{args[0]}"
            if method == "DELETE":
                git(repo, "update-ref", "-d", ref)
                return JSONResponse({})
            q = json.loads(await request.body() or b"{}")
            if verb == "tag":  # the path names the revision, the body the tag
                ref, start = f"refs/tags/{q['tag']}", args[0]
            else:
                start = q.get("startingPoint") or "main"
            if git(repo, "rev-parse", "-q", "--verify", ref, check=False):
                raise HubError(409, "Conflict", f"Reference already exists: {ref}")
            git(repo, "update-ref", ref, self.rev(repo, start))
            return JSONResponse({})
        if verb == "settings":
            meta = self.meta(kind, repo_id) | {"private": (await request.json()).get("visibility") == "private"}
            (repo / "localhub.json").write_text(json.dumps(meta))
            return JSONResponse(meta)
        if verb in ("xet-write-token", "xet-read-token") and self.xet:
            if verb == "xet-write-token":
                need_write()
            until = int(time.time()) + 3600
            token = {"X-Xet-Cas-Url": self.xet, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(until)}
            return JSONResponse({"casUrl": self.xet, "accessToken": "t", "exp": until}, headers=token)
        raise HubError(404, "NotFound", f"not implemented: {method} {raw}")

    def collection(self, seg, q, authed):
        """Create a collection, add an item to one, or return one."""
        slug = "/".join(seg[:2])
        if not seg:
            slug = f"{q['namespace']}/{re.sub('[^a-z0-9]+', '-', q['title'].lower())}-{0:024x}"
            if slug in self.collections:
                return JSONResponse({"error": "exists", "slug": slug}, 409)
            owner = {"name": q["namespace"], "type": "user"}
            about = {"slug": slug, "title": q["title"], "owner": owner, "lastUpdated": now(), "gating": False}
            more = {"position": 0, "theme": "indigo", "upvotes": 0, "description": q.get("description")}
            self.collections[slug] = about | more | {"private": q["private"], "items": []}
        elif slug not in self.collections or (self.collections[slug]["private"] and not authed):
            raise HubError(404, "NotFound", "no such collection")
        elif q:
            items, entry = self.collections[slug]["items"], q["item"]
            if not self.path(entry["type"] + "s", entry["id"]).exists():
                raise HubError(404, "NotFound", "no such repo")
            if entry["id"] in [item["id"] for item in items]:
                raise HubError(409, "Conflict", "It is in the collection")
            position = {"_id": uuid.uuid4().hex[:24], "position": len(items)}
            items.append({"id": entry["id"], "type": entry["type"], "note": {"text": q.get("note", "")}} | position)
        return JSONResponse(self.collections[slug])

    def expand(self, repo, sha, items, expand):
        if str(expand).lower() in ("true", "1"):
            for e in items:
                i, d, t = (
                    git(repo, "log", "-1", "--format=%H%x1f%cI%x1f%s", sha, "--", e["path"])
                    .decode()
                    .strip()
                    .split("\x1f")
                )
                e["lastCommit"] = {"id": i, "title": t, "date": iso(d)}
                e["securityFileStatus"] = None
        return items


def hexhash(b):
    return "".join(f"{x:016x}" for x in struct.unpack("<4Q", b))


def now():
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())


def iso(d):
    return re.sub(r"\+00:00$|Z$", ".000Z", d)


def card_data(text):
    m = re.match(r"^\s*---[ \t]*\r?\n(.*?)\r?\n---", text, re.S)
    try:
        data = yaml.safe_load(m[1]) if m else {}
    except yaml.YAMLError:
        data = {}
    return json.loads(json.dumps(data, default=str)) if isinstance(data, dict) else {}


RULES = {  # of the Hub, as far as form goes: ids, and names of its list of licences
    "license": r"[a-z0-9.+-]+",
    "base_model": r"[\w.-]+(/[\w.-]+)?",
    "datasets": r"[\w.-]+(/[\w.-]+)?",
}


def card_errors(text):
    m = re.match(r"^\s*---[ \t]*\r?\n(.*?)\r?\n---", text, re.S)
    try:
        data = yaml.safe_load(m[1]) if m else {}
    except yaml.YAMLError as e:
        return [{"message": f"YAML: {e}"}]
    if data is not None and not isinstance(data, dict):
        return [{"message": "metadata must be a mapping"}]
    data = data or {}
    wrong = [f'"{key}" with value "{value}" is not valid' for key, rule in RULES.items()
             for value in (data[key] if isinstance(data.get(key), list) else [data[key]] if key in data else [])
             if not re.fullmatch(rule, str(value))]  # fmt: skip
    try:
        for model in data.get("model-index", []):
            assert model["name"]
            for r in model["results"]:
                assert r["task"]["type"] and r["dataset"]["type"] and r["dataset"]["name"]
                assert all("type" in m and m["value"] is not None for m in r["metrics"])
    except (AssertionError, KeyError, TypeError) as e:
        wrong.append(f"model-index lacks {e}")
    return [{"message": words} for words in wrong]


def make_app(root, user="ci-user", token="hf_ci"):
    hub = Hub(root, user, token)
    app = Starlette(
        routes=[Route("/{rest:path}", hub.handle, methods=["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"])]
    )
    app.state.hub = hub
    return app


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--root", required=True)
    ap.add_argument("--port", type=int, default=8765)
    ap.add_argument("--user", default="ci-user")
    ap.add_argument("--token", default="hf_ci")
    a = ap.parse_args()
    uvicorn.run(make_app(a.root, a.user, a.token), host="127.0.0.1", port=a.port, log_level="warning")
