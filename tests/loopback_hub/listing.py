"""The endpoint that lists models: those with all tags asked for, as this user may see them, a page at a time."""

import yaml

from loopback_hub.exchange import Answer, Call, page_url
from loopback_hub.repositories import DATE, Repository


def list_models(call: Call) -> Answer:
    wanted = set(call.query.get("filter", []))
    seen = [repository for (kind, _), repository in call.hub.repositories.items() if kind == "model"]
    seen = [each for each in seen if not each.private or (call.user is not None and call.user.name == each.owner)]
    found = [_entry(each, call.asks("full")) for each in seen if wanted <= set(card_tags(each))]
    start, size = int(call.query.get("cursor", ["0"])[0]), call.hub.page_size
    headers = {}
    if start + size < len(found):
        headers["Link"] = f'<{page_url(call, cursor=start + size)}>; rel="next"'
    return Answer.of(found[start : start + size], **headers)


def _entry(repository: Repository, full: bool) -> dict:
    entry = {
        "_id": repository.repo_id,
        "id": repository.repo_id,
        "modelId": repository.repo_id,
        "private": repository.private,
        "createdAt": DATE,
        "downloads": 0,
        "likes": 0,
        "tags": card_tags(repository),
    }
    if full:
        siblings = [{"rfilename": path} for path in sorted(repository.head.files)]
        entry |= {"author": repository.owner, "sha": repository.head.sha, "lastModified": DATE, "siblings": siblings}
        entry["gated"] = "manual" if repository.gated else False
    return entry


def card_tags(repository: Repository) -> list[str]:
    """The tags in the metadata of the card; the Hub leaves out what it cannot read."""
    text = repository.files().get("README.md", b"").decode(errors="replace")
    try:
        metadata = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except yaml.YAMLError:
        return []
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    return [str(tag) for tag in tags] if isinstance(tags, list) else []
