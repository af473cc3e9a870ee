{{- define "weir.labels" -}}
app.kubernetes.io/part-of: weir
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Not empty where pods that start wait for the CNI plugin. istiod tells of a pod only once it runs: they would wait for ever. */}}
{{- define "weir.cni" -}}
{{- if and .Values.agent.cni.enabled (not .Values.istiod.enabled) }}true{{ end }}
{{- end }}

{{/* Not empty where agents open their port for flows. */}}
{{- define "weir.flowsPort" -}}
{{- if or .Values.flows.port.enabled .Values.relay.enabled -}}
{{- if .Values.istiod.enabled }}
{{- fail "flows.port.enabled and relay.enabled need weir-control, which gives the certificates; with istiod.enabled set agent.config.hubble to files of your own (docs/flows.md)" }}
{{- end -}}
{{- if not (or .Values.relay.enabled .Values.flows.port.clients) }}
{{- fail "flows.port.enabled: nobody may ask yet; name clients in flows.port.clients, or set relay.enabled" }}
{{- end -}}
true
{{- end }}
{{- end }}

{{/* The names that agents let in at it. */}}
{{- define "weir.flowsClients" -}}
{{- $clients := .Values.flows.port.clients }}
{{- if .Values.relay.enabled }}
{{- $clients = prepend $clients (dict "name" "relay.hubble.weir.dev") }}
{{- end }}
{{- toYaml $clients }}
{{- end }}

{{- define "weir.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}
