{{- define "weir.labels" -}}
app.kubernetes.io/part-of: weir
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* Not empty where pods that start wait for the CNI plugin. istiod tells of a pod only once it runs: they would wait for ever. */}}
{{- define "weir.cni" -}}
{{- if and .Values.agent.cni.enabled (not .Values.istiod.enabled) }}true{{ end }}
{{- end }}

{{- define "weir.image" -}}
{{ .root.Values.image.registry }}/{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}
