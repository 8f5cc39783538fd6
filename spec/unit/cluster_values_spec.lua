local fake = require "spec.unit.cluster_fake"
local address = require "symphony.cluster.address"
local advertise = require "symphony.cluster.advertise"
local cidr = require "symphony.cluster.cidr"
local ids = require "symphony.cluster.ids"
local json = require "symphony.json"
local limiter = require "symphony.cluster.limiter"
local values = require "symphony.cluster.values"

describe("cidr", function()
  it("reads addresses of both families", function()
    assert.equal("\1\2\3\4", cidr.parse_ip("1.2.3.4"))
    assert.equal(("\0"):rep(15) .. "\1", cidr.parse_ip("::1"))
    assert.equal("\xfd" .. ("\0"):rep(14) .. "\5", cidr.parse_ip("fd00::5"))
    assert.equal(("\0"):rep(16), cidr.parse_ip("::"))
    assert.equal("\1\2\3\4", cidr.parse_ip("::ffff:1.2.3.4"))
    assert.equal(16, #cidr.parse_ip("1:2:3:4:5:6:7:8"))
    assert.equal(16, #cidr.parse_ip("fe80::1%eth0"))
    assert.equal(cidr.parse_ip("64:ff9b::c000:221"), cidr.parse_ip("64:ff9b::192.0.2.33"))
  end)

  it("refuses everything else", function()
    for _, text in ipairs { "", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "a", ":::", "1::2::3", "1:2:3:4:5:6:7",
      "1:2:3:4:5:6:7:8:9", "1:2:3:4:5:6:7::8:9", "g::1", "12345::", "::1.2.3", "1.2.3.4 ", ("1"):rep(100), ":1" } do
      assert.is_nil(cidr.parse_ip(text), text)
    end
    assert.is_nil(cidr.parse_ip(nil))
  end)

  it("tells what is within a block", function()
    local ten = cidr.parse("10.0.0.0/8")
    assert.is_true(cidr.contains(ten, "10.255.1.2"))
    assert.is_false(cidr.contains(ten, "11.0.0.1"))
    assert.is_false(cidr.contains(ten, "fd00::1"))
    assert.is_false(cidr.contains(ten, "nonsense"))
    assert.is_true(cidr.contains(ten, "::ffff:10.1.1.1"))
    local odd = cidr.parse("192.168.128.0/17")
    assert.is_true(cidr.contains(odd, "192.168.129.1"))
    assert.is_false(cidr.contains(odd, "192.168.127.255"))
    assert.is_true(cidr.contains(cidr.parse("0.0.0.0/0"), "8.8.8.8"))
    assert.is_true(cidr.contains(cidr.parse("fd00::/8"), "fd12::1"))
    assert.is_false(cidr.contains(cidr.parse("fd00::/16"), "fd12::1"))
    assert.is_true(cidr.contains(cidr.parse("127.0.0.1"), "127.0.0.1"))
  end)

  it("refuses blocks that are none", function()
    for _, text in ipairs { "10.0.0.1/8", "10.0.0.0/33", "fd00::/129", "10.0.0.0/", "/8", "10.0.0.0/8/8",
      "fd00::1/64" } do
      assert.is_nil(cidr.parse(text), text)
    end
  end)

  it("knows the loopback", function()
    for _, text in ipairs { "127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1" } do
      assert.is_true(cidr.is_loopback(text), text)
    end
    for _, text in ipairs { "128.0.0.1", "::2", "10.0.0.1", "example.org", "" } do
      assert.is_false(cidr.is_loopback(text), text)
    end
  end)
end)

describe("address", function()
  it("reads host and port in every form", function()
    local good = {
      ["10.0.0.5:27242"] = { "10.0.0.5", 27242 }, ["[fd00::5]:1"] = { "fd00::5", 1 }, ["host"] = { "host", 9 },
      ["[::1]"] = { "::1", 9 }, ["fd00::5"] = { "fd00::5", 9 }, ["a-b.example.org:65535"] = { "a-b.example.org",
        65535 },
    }
    for text, want in pairs(good) do
      local host, port = address.parse(text, 9)
      assert.same(want, { host, port }, text)
    end
    assert.equal("[fd00::5]:7", address.format("fd00::5", 7))
    assert.equal("h:7", address.format("h", 7))
  end)

  it("says why it is none", function()
    for _, text in ipairs { "", ":", ":1", "host:", "host:0", "host:65536", "host:99999999", "host:x", "[::1", "[::1]x",
      "[host]:1", "a b:1", "1.2.3:1", "a..b:1", "-a:1", "a:1:2", ("a"):rep(300) .. ":1", ("a"):rep(64) .. ":1",
        "a\0b:1" } do
      local host, err = address.parse(text, 9)
      assert.is_nil(host, text)
      assert.equal("invalid", err.code)
      assert.is_string(err.hint)
      assert.is_falsy(err.message:find("[^\x20-\x7e]"))
    end
    assert.is_nil(address.parse("host"))
  end)
end)

describe("advertise", function()
  it("takes what was said first, then the daemon's flag, then the default route", function()
    local function default() return "10.1.1.1" end
    assert.equal("h1", advertise.pick("h1", {}, false, default))
    assert.equal("h2", advertise.pick("h2", { advertise_addr = "h2" }, false, default))
    -- The daemon's flag is what counts at its next start.
    assert.equal("invalid", select(2, advertise.pick("h1", { advertise_addr = "h2" }, false, default)).code)
    assert.equal("h2", advertise.pick(nil, { advertise_addr = "h2" }, false, default))
    assert.equal("10.1.1.1", advertise.pick(nil, {}, false, default))
    assert.equal("127.0.0.1", advertise.pick(nil, {}, true, default))
  end)

  it("takes the one address that the daemon listens at, and says when nobody named any", function()
    local function default() return "10.1.1.1" end
    assert.same({ "10.2.2.2", false }, { advertise.pick(nil, { bind_addr = "10.2.2.2" }, false, default) })
    assert.same({ "h2", false }, { advertise.pick(nil, { bind_addr = "10.2.2.2", advertise_addr = "h2" }, false,
      default) })
    for _, bind in ipairs { "0.0.0.0", "::" } do
      assert.same({ "10.1.1.1", true }, { advertise.pick(nil, { bind_addr = bind }, false, default) })
    end
    assert.same({ "h1", false }, { advertise.pick("h1", {}, false, default) })
    assert.is_nil((advertise.pick(nil, { bind_addr = "10.2.2.2" }, true, default)))
    assert.same({ raft = "127.0.0.1:1", gossip = "127.0.0.1:3" },
      advertise.on_loopback { raft = "[fd00::1]:1", gossip = "h:3" })
  end)

  it("goes on with what was chosen, and with what the machine has where nothing was", function()
    local here = "10.1.1.1"
    local function host(follows, options)
      return advertise.host({ follows = follows, advertise = { remote = "10.0.0.5:1" } }, options,
        function() return here end)
    end
    assert.equal("h2", host(nil, { advertise_addr = "h2" }))
    assert.equal("h2", host(true, { advertise_addr = "h2", bind_addr = "10.2.2.2" }))
    assert.equal("10.0.0.5", host(nil, {}))
    assert.equal("10.0.0.5", host(nil, { bind_addr = "10.2.2.2" }))
    assert.equal("10.2.2.2", host(true, { bind_addr = "10.2.2.2" }))
    for _, bind in ipairs { "0.0.0.0", "::" } do assert.equal("10.1.1.1", host(true, { bind_addr = bind })) end
    here = "127.0.0.1" -- it has none
    assert.equal("10.0.0.5", host(true, {}))
    here = "10.1.1.1"
    local has <close> = setmetatable({ was = advertise.has }, { __close = function(it) advertise.has = it.was end })
    advertise.has = function(ip) return ip == "10.0.0.5" end
    assert.equal("10.0.0.5", host(true, {})) -- another network, beside the one that it is in
    assert.is_true(has.was("127.0.0.1"))
    assert.is_false(has.was("192.0.2.1"))
    assert.is_true(advertise.follows(nil, { bind_addr = "10.2.2.2" }))
    assert.is_false(advertise.follows("h1", {}))
    assert.is_false(advertise.follows(nil, { advertise_addr = "h2" }))
  end)

  it("keeps development mode on the loopback", function()
    assert.is_nil(advertise.pick("10.0.0.1", {}, true))
    local _, err = advertise.pick(nil, { advertise_addr = "10.0.0.1" }, true)
    assert.equal("invalid", err.code)
    assert.equal("::1", advertise.pick("::1", {}, true))
  end)

  it("refuses what nobody can reach", function()
    assert.is_nil(advertise.pick("0.0.0.0", {}, false))
    assert.is_nil(advertise.pick("a b", {}, false))
  end)

  it("says which port is taken", function()
    local uv = require "luv"
    local tcp = uv.new_tcp()
    assert(tcp:bind("127.0.0.1", 0))
    assert(tcp:listen(1, function() end))
    local port = tcp:getsockname().port
    local free, err = advertise.check_ports { bind_addr = "127.0.0.1", raft_port = 0, remote_port = port }
    tcp:close()
    assert.is_nil(free)
    assert.equal("in_use", err.code)
    assert.truthy(err.message:find(tostring(port), 1, true))
    assert.is_true(advertise.check_ports { bind_addr = "127.0.0.1", raft_port = 0, remote_port = 0 })
    fake.loop()
  end)
end)

describe("ids", function()
  it("are 26 characters and sort by time", function()
    local base32 = require("sym.crypto").base32
    local a = ids.make(1700000000000, ("\255"):rep(10), base32)
    local b = ids.make(1700000000001, ("\0"):rep(10), base32)
    assert.equal(26, #a)
    assert.is_true(a < b)
    assert.is_true(values.is_node_id(a))
    assert.not_equal(ids.new(), ids.new())
  end)
end)

describe("values", function()
  it("checks names", function()
    for _, name in ipairs { "a", "manager-01", "a.b_c", "1a", ("a"):rep(63) } do assert.equal(name,
      values.check_name(name)) end
    for _, name in ipairs { "", "12", "-a", "a b", ("a"):rep(64), "a/b", "a\n", ids.new(), 7, false } do
      local ok, err = values.check_name(name)
      assert.is_nil(ok, tostring(name))
      assert.equal("invalid", err.code)
    end
  end)

  it("makes a name of any host name", function()
    assert.equal("host", values.name_from("host.example.org"))
    for _, host in ipairs { "", "12", "---", "ä", ("x"):rep(300), "12.example", ids.new() } do
      assert.truthy(values.check_name(values.name_from(host)), host)
    end
    assert.truthy(values.name_from(nil))
  end)

  it("reads durations", function()
    local good = { ["90s"] = 90, ["30m"] = 1800, ["24h"] = 86400, ["7d"] = 604800, ["2w"] = 1209600, ["15"] = 15 }
    for text, want in pairs(good) do assert.equal(want, values.parse_duration(text)) end
    assert.is_false(values.parse_duration("never"))
    for _, text in ipairs { "", "0", "-1h", "1.5h", "h", "10y", "99999999w", ("9"):rep(100) } do
      local ok, err = values.parse_duration(text)
      assert.is_nil(ok, text)
      assert.equal("invalid", err.code)
    end
  end)

  it("reads labels", function()
    assert.same({ zone = "a", ["x/y"] = "" }, values.parse_labels { "zone=a", "x/y=" })
    assert.equal("a=1,b=2", values.format_labels { b = "2", a = "1" })
    assert.equal("usage", select(2, values.parse_labels { "novalue" }).code) -- as of any option that is no KEY=VALUE
    assert.is_nil(values.parse_labels { "k=a b" })
    local many = {}
    for i = 1, 33 do many[i] = "k" .. i .. "=v" end
    assert.is_nil(values.parse_labels(many))
    assert.is_nil(values.check_labels { [1] = "x" })
  end)

  it("carries any bytes through JSON", function()
    for _, bytes in ipairs { "", "text", "\0\1", "\255\254", "ä" } do
      local obj = json.decode(json.encode(values.put_bytes({}, "v", bytes)))
      assert.equal(bytes, values.get_bytes(obj, "v"))
    end
    local _, err = values.get_bytes({ v = "a", v_base64 = "YQ==" }, "v")
    assert.equal("invalid", err.code)
    assert.is_nil(values.get_bytes({}, "v"))
    for _, bad in ipairs { { v = 7 }, { v_base64 = "!" }, { v = json.null } } do
      local got, why = values.get_bytes(bad, "v")
      assert.is_nil(got)
      assert.equal("invalid", why.code)
    end
  end)

  it("says when something expires", function()
    assert.equal("never", values.format_expiry(nil, 0))
    assert.equal("in 1h 1m", values.format_expiry(3660, 0))
    assert.equal("expired 59s ago", values.format_expiry(0, 59))
    assert.equal("in 3d", values.format_expiry(3 * 86400, 0))
    assert.equal("0s", values.format_span(-5))
    assert.equal("59s", values.format_span(59.9))
    assert.equal("47h 59m", values.format_span(2 * 86400 - 1))
  end)

  it("reads and shows times of UTC", function()
    local now = 1700000000
    for text, at in pairs {
      ["@5"] = 5, ["15m"] = now - 900, ["60"] = now - 60, ["2d"] = now - 2 * 86400, ["1970-01-01"] = 0,
      ["2000-02-29"] = 951782400, ["2000-03-01"] = 951868800,
      ["2023-11-14 22:13:20"] = now, ["2023-11-14T22:13:20Z"] = now,
      ["2023-11-14 22:13"] = now - 20, ["2023-11-14T22:13Z"] = now - 20, ["2100-03-01"] = 4107542400,
      ["2026-12-31 23:59:59"] = 1798761599,
    } do
      local got, err = values.parse_since(text, now)
      assert.equal(at, got, text .. ": " .. tostring(err))
      assert.equal("integer", math.type(got))
    end
    assert.equal("2023-11-14 22:13:20", values.format_time(now + 0.9))
    assert.equal(now, values.parse_since(values.format_time(now), 0))
    for _, text in ipairs { "", "soon", "never", "0", "-5m", "@", "@x", "@9999999999999", "2023-02-29", "2100-02-29",
      "2023-00-10", "2023-13-01", "2023-01-00", "2023-01-32", "1969-12-31", "2023-01-01 24:00", "2023-01-01 10:60",
      "2023-01-01 10:00:60", "2023-01-01 10", "2023-01-01 10:00:00x", "2023-01-01Z", "2023-1-1", ("9"):rep(5000) } do
      local got, err = values.parse_since(text, now)
      assert.is_nil(got, text)
      assert.equal("invalid", err.code)
    end
  end)
end)

describe("limiter", function()
  it("lets a burst through, then one at a time, for each address", function()
    local l = limiter.new(3, 10, 100)
    for _ = 1, 3 do assert.is_true(l:allow("a", 0)) end
    assert.is_false(l:allow("a", 0))
    assert.is_true(l:allow("b", 0))
    assert.is_false(l:allow("a", 9))
    assert.is_true(l:allow("a", 19.5))
    assert.is_false(l:allow("a", 19.6))
  end)

  it("lets all of a burst through, however little each takes and whatever the time is", function()
    for _, now in ipairs { 0, 1000.1, 123456.789, 1.5e9 + 1 / 3 } do
      for _, every in ipairs { 0.05, 0.2, 1 / 3, 3, 3600 } do
        local l = limiter.new(200, every, 100)
        for _ = 1, 200 do assert.is_true(l:allow("a", now)) end
        assert.is_false(l:allow("a", now))
        assert.is_false(l:allow("a", now + 0.9 * every))
        assert.is_true(l:allow("a", now + 1.1 * every))
      end
    end
  end)

  it("in two steps lets the next wait for as long as it was too often, within bounds", function()
    local l = limiter.new(3, 10, 100)
    for _ = 1, 3 do
      assert.is_true(l:may("a", 0))
      l:done("a", 0)
    end
    assert.is_false(l:may("a", 9.9))
    assert.is_true(l:may("a", 10))
    for _ = 1, 100 do l:done("a", 10) end
    assert.is_false(l:may("a", 49.9))
    assert.is_true(l:may("a", 50))
    assert.is_true(l:may("b", 0))
  end)

  it("takes an IPv6 /64 for one address", function()
    local l = limiter.new(1, 10, 100)
    assert.is_true(l:allow("2001:db8::1", 0))
    assert.is_false(l:allow("2001:db8::ffff:1", 0))
    assert.is_true(l:allow("2001:db8:0:1::1", 0))
    assert.is_true(l:allow("192.0.2.1", 0))
    assert.is_true(l:allow("192.0.2.2", 0))
    assert.is_false(l:allow("::ffff:192.0.2.2", 0))
  end)

  it("keeps its memory bounded", function()
    local l = limiter.new(1, 10, 50)
    for i = 1, 1000 do l:allow("addr" .. i, i / 1000) end
    local n = 0
    for _ in pairs(l.buckets) do n = n + 1 end
    assert.is_true(n <= 50, n)
  end)
end)
