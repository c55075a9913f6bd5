"""One function for each client: it asks the server at `base` and returns rows (index, score).

Rows are in the client's own order. What they must be is said where the check is registered:
the scores of /score, their logits, or the same in single precision.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

QUERY = "how long to boil eggs"
DOCUMENTS = [
    "Penguins are birds that cannot fly but swim very well.",
    "Boil eggs for six minutes for a soft yolk or ten for a hard one.",
    "Eggs are laid by hens.",
    "Boil eggs for six minutes for a soft yolk or ten for a hard one.",
]
HERE = Path(__file__).parent

CHECKS = []


def check(package, call, scores="scores"):
    """Registers a check of `package`; `scores` is scores, logits or single."""

    def register(function):
        CHECKS.append((package, call, scores, function))
        return function

    return register


def rows(results, score="relevance_score"):
    return [(result.index, getattr(result, score)) for result in results]


@check("cohere", "Client.rerank (v1)")
def cohere_v1(base):
    import cohere

    answer = cohere.Client("none", base_url=base).rerank(
        model="rerank-english-v3.0", query=QUERY, documents=DOCUMENTS, return_documents=True
    )
    assert answer.results[0].document.text == DOCUMENTS[answer.results[0].index]
    assert answer.meta.billed_units.search_units == 1
    return rows(answer.results)


@check("cohere", "Client.rerank with rank_fields (v1)")
def cohere_v1_fields(base):
    import cohere

    documents = [{"text": text, "price": 3} for text in DOCUMENTS]
    client = cohere.Client("none", base_url=base)
    return rows(client.rerank(query=QUERY, documents=documents, rank_fields=["text"]).results)


@check("cohere", "ClientV2.rerank, and its errors")
def cohere_v2(base):
    import cohere

    client = cohere.ClientV2("none", base_url=base)
    answer = client.rerank(model="rerank-v3.5", query=QUERY, documents=DOCUMENTS, top_n=4)
    assert answer.meta.tokens.input_tokens > 0 and answer.id
    assert any("rerank-v3.5" in warning for warning in answer.meta.warnings), answer.meta
    try:
        client.rerank(model="rerank-v3.5", query="", documents=DOCUMENTS)
    except cohere.errors.BadRequestError as error:
        assert error.body["message"] == "query: is empty", error.body
    else:
        raise AssertionError("an empty query was taken")
    return rows(answer.results)


@check("langchain-cohere", "CohereRerank.rerank")
def langchain_cohere(base):
    from langchain_cohere import CohereRerank

    reranker = CohereRerank(cohere_api_key="none", base_url=base, model="rerank-v3.5", top_n=None)
    return [(row["index"], row["relevance_score"]) for row in reranker.rerank(DOCUMENTS, QUERY)]


@check("langchain-nvidia-ai-endpoints", "NVIDIARerank.compress_documents", scores="logits")
def langchain_nvidia(base):
    from langchain_core.documents import Document
    from langchain_nvidia_ai_endpoints import NVIDIARerank

    documents = [Document(page_content=text, metadata={"at": at}) for at, text in enumerate(DOCUMENTS)]
    reranker = NVIDIARerank(base_url=f"{base}/v1", model="verdict-mini", top_n=4, truncate="END")
    ranked = reranker.compress_documents(documents=documents, query=QUERY)
    return [(document.metadata["at"], document.metadata["relevance_score"]) for document in ranked]


@check("voyageai", "Client.rerank, and its errors")
def voyage(base):
    import voyageai

    client = voyageai.Client(api_key="none", base_url=f"{base}/v1", max_retries=0)
    answer = client.rerank(QUERY, DOCUMENTS, model="rerank-2")
    assert answer.total_tokens > 0
    try:
        client.rerank("", DOCUMENTS, model="rerank-2")
    except voyageai.error.InvalidRequestError as error:
        assert "query: is empty" in str(error), error
    else:
        raise AssertionError("an empty query was taken")
    return rows(answer.results)


@check("mixedbread", "Mixedbread.rerank")
def mixedbread(base):
    from mixedbread import Mixedbread

    client = Mixedbread(api_key="none", base_url=base)
    answer = client.rerank(model="verdict-mini", query=QUERY, input=DOCUMENTS, return_input=True)
    assert answer.data[0].input == DOCUMENTS[answer.data[0].index] and answer.top_k == 4
    return rows(answer.data, "score")


def nodes():
    from llama_index.core.schema import NodeWithScore, TextNode

    return [NodeWithScore(node=TextNode(text=text, id_=str(at))) for at, text in enumerate(DOCUMENTS)]


@check("llama-index-postprocessor-tei-rerank", "TextEmbeddingInference.postprocess_nodes")
def llama_index_tei(base):
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    ranked = TextEmbeddingInference(base_url=base, top_n=4).postprocess_nodes(nodes(), query_str=QUERY)
    return [(int(node.node.node_id), node.score) for node in ranked]


@check("llama-index-postprocessor-jinaai-rerank", "JinaRerank.postprocess_nodes")
def llama_index_jina(base):
    from llama_index.postprocessor.jinaai_rerank import JinaRerank

    reranker = JinaRerank(base_url=f"{base}/v1", api_key="none", top_n=4, model="jina-reranker-v2")
    return [(int(node.node.node_id), node.score) for node in reranker.postprocess_nodes(nodes(), query_str=QUERY)]


@check("huggingface-api-haystack", "HuggingFaceTEIRanker.run")
def haystack_tei(base):
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

    ranker = HuggingFaceTEIRanker(url=base, top_k=4, token=Secret.from_token("none"))
    documents = [Document(content=text, meta={"at": at}) for at, text in enumerate(DOCUMENTS)]
    ranked = ranker.run(query=QUERY, documents=documents)["documents"]
    return [(document.meta["at"], document.score) for document in ranked]


def litellm_check(provider, path, scores="scores", **options):
    @check("litellm", f"rerank({provider}/…)", scores)
    def ask(base):
        import litellm

        answer = litellm.rerank(
            model=f"{provider}/verdict-mini",
            query=QUERY,
            documents=DOCUMENTS,
            top_n=4,
            api_base=base + path,
            api_key="none",
            **options,
        )
        return [(row["index"], row["relevance_score"]) for row in answer.results]


litellm_check("cohere", "")
litellm_check("jina_ai", "/v1/rerank")
litellm_check("hosted_vllm", "")
# It writes the body that it writes for vLLM, and expects documents in another form.
litellm_check("infinity", "", return_documents=False)
litellm_check("huggingface", "")
litellm_check("voyage", "/v1")
litellm_check("nvidia_nim", "", scores="logits")
litellm_check("nvidia_nim/ranking", "", scores="logits")


@check("grpcio-reflection", "services and tei.v1 messages")
def reflection(base):
    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool
    from google.protobuf.message_factory import GetMessageClass
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    with grpc.insecure_channel(base.removeprefix("http://")) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = set(database.get_services())
        assert {"relevance.v1.RelevanceService", "tei.v1.Rerank", "tei.v1.Info"} <= services, services
        pool = DescriptorPool(database)
        info = pool.FindServiceByName("tei.v1.Info").methods_by_name["Info"]
        request, reply = GetMessageClass(info.input_type), GetMessageClass(info.output_type)
        call = channel.unary_unary(
            "/tei.v1.Info/Info",
            request_serializer=request.SerializeToString,
            response_deserializer=reply.FromString,
        )
        answer = call(request(), timeout=10)
        assert (answer.model_id, answer.model_type) == ("verdict-mini", 2), answer
    return None


@check("grpc-requests", "relevance.v1 Score")
def grpc_native(base):
    from grpc_requests import Client

    documents = [{"text": text} for text in DOCUMENTS]
    request = {"query": QUERY, "documents": documents, "sort": True}
    client = Client(base.removeprefix("http://"))
    answer = client.request("relevance.v1.RelevanceService", "Score", request)
    # Fields that are 0 are left out of these dictionaries.
    return [(row.get("index", 0), row["relevance_score"]) for row in answer["results"]]


@check("grpc-requests", "tei.v1 Rerank and RerankStream", scores="single")
def grpc_tei(base):
    from grpc_requests import Client

    client = Client(base.removeprefix("http://"))
    answer = client.request("tei.v1.Rerank", "Rerank", {"query": QUERY, "texts": DOCUMENTS})
    stream = [{"query": QUERY, "text": text} for text in DOCUMENTS]
    streamed = client.request("tei.v1.Rerank", "RerankStream", stream)
    assert answer["ranks"] == streamed["ranks"], (answer, streamed)
    return [(row.get("index", 0), row["score"]) for row in answer["ranks"]]


def npm_version(package):
    """None if it is not installed where node looks, or if there is no node."""
    places = [HERE / "node_modules", *map(Path, os.environ.get("NODE_PATH", "").split(os.pathsep))]
    found = [place / package / "package.json" for place in places]
    found = [path for path in found if path.is_file()]
    return json.loads(found[0].read_text())["version"] if found and shutil.which("node") else None


@check("npm cohere-ai", "CohereClient.rerank and CohereClientV2.rerank")
def npm_cohere(base):
    request = json.dumps({"query": QUERY, "documents": DOCUMENTS})
    command = ["node", str(HERE / "cohere.mjs"), base]
    said = subprocess.run(command, input=request, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    answer = json.loads(said.stdout)
    assert answer["v1"] == answer["v2"], answer
    return [tuple(row) for row in answer["v2"]]
