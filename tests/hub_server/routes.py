"""The loopback Hub's routes: each is a function of the hub, the call and the parts of its path, and returns an Answer.

<kind> is models or datasets, <repo> owner/name, <rev> a branch, tag or sha

GET     /api/whoami-v2
POST    /api/validate-yaml                           POST, DELETE  /api/repos/create, /api/repos/delete
GET     /api/<kind>?author=&search=&filter=          GET   /api/<kind>/<repo>[/revision/<rev>]     /api/<kind>/<repo>/auth-check
GET     /api/<kind>/<repo>/refs                      GET   /api/<kind>/<repo>/commits/<rev>
GET     /api/<kind>/<repo>/tree/<rev>[/<folder>]     POST  /api/<kind>/<repo>/paths-info/<rev>
POST, DELETE  /api/<kind>/<repo>/tag/<rev>           POST, DELETE  /api/<kind>/<repo>/branch/<name>
POST    /api/<kind>/<repo>/preupload/<rev>           POST  /api/<kind>/<repo>/commit/<rev>
GET     /api/<kind>/<repo>/xet-{read,write}-token/<rev>
POST    /[<kind>/]<repo>.git/info/lfs/objects/batch  PUT   /_lfs/<sha256>    POST  /_lfs_verify/<kind>/<repo>
GET, HEAD  /[<kind>/]<repo>/resolve/<rev>/<path>     GET, HEAD  /_cdn/<key>?f=<path>
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hub_server import reads, writes
from hub_server.calls import Answer


@dataclass(frozen=True)
class Route:
    """Which requests a function answers; with `streams` it reads the body itself, outside the hub's lock."""

    methods: tuple[str, ...]
    pattern: re.Pattern[str]
    function: Callable[..., Answer]
    streams: bool = False


KIND, REPO, REV = "(models|datasets)", "([^/]+/[^/]+?)", "([^/]+)"
API = f"/api/{KIND}/{REPO}"


def _route(methods: str, pattern: str, function: Callable[..., Answer], streams: bool = False) -> Route:
    return Route(tuple(methods.split()), re.compile(pattern), function, streams)


ROUTES = (
    _route("GET", "/api/whoami-v2", reads.whoami),
    _route("POST", "/api/validate-yaml", writes.validate_yaml),
    _route("POST", "/api/repos/create", writes.create_repo),
    _route("DELETE", "/api/repos/delete", writes.delete_repo),
    _route("GET", f"/api/{KIND}", reads.list_repos),
    _route("GET", f"{API}/auth-check", reads.auth_check),
    _route("GET", f"{API}/refs", reads.refs),
    _route("GET", f"{API}/commits/{REV}", reads.commits),
    _route("GET", f"{API}/tree/{REV}(/.*)?", reads.tree),
    _route("POST", f"{API}/paths-info/{REV}", reads.paths_info),
    _route("POST DELETE", f"{API}/tag/{REV}", writes.tag),
    _route("POST DELETE", f"{API}/branch/{REV}", writes.branch),
    _route("POST", f"{API}/preupload/{REV}", writes.preupload),
    _route("POST", f"{API}/commit/{REV}", writes.commit),
    _route("GET", f"{API}/xet-(read|write)-token/{REV}", writes.xet_token),
    _route("GET", f"{API}(?:/revision/{REV})?", reads.info),
    _route("POST", rf"/(?:{KIND}/)?{REPO}\.git/info/lfs/objects/batch", writes.lfs_batch),
    _route("PUT", "/_lfs/([0-9a-f]{64})", writes.lfs_put, streams=True),
    _route("POST", f"/_lfs_verify/{KIND}/{REPO}", writes.lfs_verify),
    _route("GET HEAD", "/_cdn/([0-9a-f]+)", reads.cdn),
    _route("GET HEAD", rf"/(?:{KIND}/)?{REPO}/resolve/{REV}/(.+)", reads.resolve),
)
