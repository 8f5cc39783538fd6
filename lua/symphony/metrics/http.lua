--- Figures of the two doors: the control socket and the remote port.
local c = require "sym.metrics"
local metrics = require "symphony.metrics"

local counter, gauge, histogram = metrics.counter, metrics.gauge, metrics.histogram

local M = {}

local function sorted(t)
  local names = {}
  for name in pairs(t) do names[#names + 1] = name end
  table.sort(names)
  return names
end

function M.families()
  local open = gauge("symphony_http_connections", "Open connections.")
  local accepted = counter("symphony_http_connections_accepted_total", "Connections accepted.")
  local refused = counter("symphony_http_connections_refused_total",
    "Connections refused: too many of them, or of one address.")
  local handshakes = counter("symphony_http_handshakes_failed_total",
    "Connections that ended before their TLS handshake was over.")
  local malformed = counter("symphony_http_malformed_requests_total",
    "Requests that were not HTTP as it should be, too large or too slow.")
  local waiting = gauge("symphony_http_waiting_bytes",
    "Bytes of bodies and answers, those of watches too, that wait to be read or sent; up to half a second old.")
  local answers = counter("symphony_http_requests_total",
    "Requests by what they were about and by their status; none: the peer went, or the answer was broken off.")
  local durations = histogram("symphony_http_request_duration_seconds",
    "From a request's being whole to its answer, or to the beginning of one that is a stream.")
  local servers = c.http()
  for _, door in ipairs(sorted(servers)) do
    local s, label = servers[door], { door = door }
    open:add(s.open, label)
    accepted:add(s.accepted, label)
    refused:add(s.refused, label)
    handshakes:add(s.no_handshake, label)
    malformed:add(s.malformed, label)
    waiting:add(s.waiting, label)
    for _, class in ipairs(sorted(s.classes)) do
      local of = s.classes[class]
      for i = 0, 5 do
        if of.answers[i] > 0 then
          answers:add(of.answers[i], { door = door, class = class, code = i == 0 and "none" or i .. "xx" })
        end
      end
      durations:add(of.durations, { door = door, class = class })
    end
  end
  return { open, accepted, refused, handshakes, malformed, waiting, answers, durations }
end

function M.register()
  metrics.source("http", M.families)
end

return M
