// Validates resources of KEDA and of the Prometheus operator: node crds.mjs FOLDER, a JSON
// list of them on standard input; FOLDER is a node_modules. Each problem is a line.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const FILES = {
  "keda.sh/v1alpha1/ScaledObject": "keda/keda.sh/v1alpha1/ScaledObject.js",
  "monitoring.coreos.com/v1/PodMonitor": "prometheus-operator/monitoring.coreos.com/v1/PodMonitor.js",
};

const [folder] = process.argv.slice(2);
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const kind = `${resource.apiVersion}/${resource.kind}`;
  const file = FILES[kind];
  if (!file) {
    console.log(`${kind}: no schema`);
    continue;
  }
  const module = await import(pathToFileURL(resolve(folder, "@kubernetes-models", file)));
  try {
    new module[resource.kind](resource).validate();
  } catch (error) {
    console.log(`${kind} ${resource.metadata?.name}: ${error.message}`);
  }
}
