"""A decision as JUnit XML: an adapter is a suite, a rule a test case."""

import re
from xml.etree import ElementTree

from deltasae_ray.gate.decision import Decision
from deltasae_ray.gate.error_rate import worst
from deltasae_ray.gate.sarif import message

_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(decision: Decision) -> bytes:
    """A rule that fired is a failure, one that cannot be decided an error; neither counts as passed."""
    top = ElementTree.Element("testsuites", name="deltasae_ray gate")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for adapter in decision.adapters:
        suite = ElementTree.SubElement(top, "testsuite", name=_text(adapter))
        counts = {"tests": 0, "failures": 0, "errors": 0}
        for rule in decision.policy.rules:
            findings = [f for f in decision.findings if (f.adapter, f.rule) == (adapter, rule.name)]
            if not findings:
                continue
            case = ElementTree.SubElement(suite, "testcase", classname=_text(adapter), name=rule.name)
            counts["tests"] += 1
            outcome = worst([f.outcome for f in findings])
            if outcome != "clear":
                kind, count = ("failure", "failures") if outcome == "fired" else ("error", "errors")
                counts[count] += 1
                text = "\n".join(message(f, rule) for f in findings if f.outcome == outcome)
                ElementTree.SubElement(case, kind, message=_text(text.split("\n")[0])).text = _text(text)
        for name, count in counts.items():
            suite.set(name, str(count))
            totals[name] += count
    for name, count in totals.items():
        top.set(name, str(count))
    ElementTree.indent(top)
    return ElementTree.tostring(top, encoding="utf-8", xml_declaration=True)


def _text(text: str) -> str:
    """Without what XML 1.0 cannot hold, such as control characters in a name."""
    return _NOT_IN_XML.sub("\ufffd", text)
